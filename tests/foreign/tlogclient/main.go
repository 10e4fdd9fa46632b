// Verifies a log that egs-kernel serves, with the Go project's own implementation of signed notes and of the tree:
// the checkpoint's signature, that entries are included, and that earlier checkpoints are continued.
//
//	tlogclient [-old FILE]… [-witness VKEY]… URL VKEY INDEX…
//	tlogclient -proof FILE ENTRY VKEY
//
// The second form verifies a proof without a log (C2SP tlog-proof): that the bytes of the file ENTRY are in it.
//
// URL is the log's prefix (C2SP tlog-tiles). Each INDEX is an entry that has to be included; it is printed. Each FILE is
// a checkpoint that was fetched before. Each witness has to have cosigned the checkpoint (C2SP tlog-cosignature, which the
// Go project's package does not know: cosigner teaches it). Exits with 1 and the reason when something does not verify.
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// C2SP tlog-tiles: 256 hashes to a tile.
const height, width = 8, 256

type client struct{ prefix string }

func (c client) get(path string) ([]byte, error) {
	response, err := http.Get(c.prefix + "/" + path)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, response.Status, content)
	}
	return content, err
}

// index encodes the number of a tile: 1234067 is x001/x234/067.
func index(n int64, full bool, w int) string {
	path := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		path = fmt.Sprintf("x%03d/%s", n%1000, path)
	}
	if !full {
		path += fmt.Sprintf(".p/%d", w)
	}
	return path
}

// Height, ReadTiles, SaveTiles: tlog.TileReader.
func (c client) Height() int { return height }

func (c client) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		content, err := c.get(fmt.Sprintf("tile/%d/%s", tile.L, index(tile.N, tile.W == width, tile.W)))
		if err != nil {
			return nil, err
		}
		found = append(found, content)
	}
	return found, nil
}

func (c client) SaveTiles([]tlog.Tile, [][]byte) {}

func (c client) entry(n, size int64) ([]byte, error) {
	w := size - n/width*width
	content, err := c.get("tile/entries/" + index(n/width, w >= width, int(w)))
	for i := int64(0); err == nil; i++ {
		if len(content) < 2 || len(content)-2 < int(binary.BigEndian.Uint16(content)) {
			return nil, fmt.Errorf("the bundle of entry %d ends before it", n)
		}
		end := 2 + int(binary.BigEndian.Uint16(content))
		if i == n%width {
			return content[2:end], nil
		}
		content = content[end:]
	}
	return nil, err
}

// cosigner verifies cosignature/v1: note.Verifier.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func newCosigner(vkey string) (*cosigner, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("no verifier key: %s", vkey)
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 33 || key[0] != 4 {
		return nil, fmt.Errorf("no key that cosigns: %s", vkey)
	}
	id := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	if hash := binary.BigEndian.Uint32(id[:]); fmt.Sprintf("%08x", hash) == parts[1] {
		return &cosigner{parts[0], hash, key[1:]}, nil
	}
	return nil, fmt.Errorf("another key id: %s", vkey)
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }

func (c *cosigner) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(signature), text)
	return ed25519.Verify(c.key, []byte(message), signature[8:])
}

// cosigned checks that a witness cosigned a checkpoint.
func cosigned(content []byte, vkey string) error {
	witness, err := newCosigner(vkey)
	if err == nil {
		_, err = note.Open(content, note.VerifierList(witness))
	}
	return err
}

// open verifies a checkpoint's signature and returns its tree.
func open(content []byte, verifier note.Verifier) (tlog.Tree, error) {
	signed, err := note.Open(content, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		return tlog.Tree{}, fmt.Errorf("no checkpoint of %s", verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

func verify(c client, vkey string, olds, witnesses, indexes []string) error {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	content, err := c.get("checkpoint")
	if err != nil {
		return err
	}
	tree, err := open(content, verifier)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	fmt.Printf("checkpoint %d\n", tree.N)
	for _, witness := range witnesses {
		if err := cosigned(content, witness); err != nil {
			return fmt.Errorf("witness %s: %w", witness, err)
		}
		fmt.Printf("cosigned %s\n", strings.SplitN(witness, "+", 2)[0])
	}
	hashes := tlog.TileHashReader(tree, c)
	for _, text := range indexes {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		entry, err := c.entry(n, tree.N)
		if err != nil {
			return err
		}
		proof, err := tlog.ProveRecord(tree.N, n, hashes)
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n, tlog.RecordHash(entry)); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		fmt.Printf("included %d %s\n", n, entry)
	}
	for _, name := range olds {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		old, err := open(content, verifier)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		proof, err := tlog.ProveTree(tree.N, old.N, hashes)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Printf("continues %d\n", old.N)
	}
	return nil
}

// proven verifies a tlog-proof of an entry, with nothing but the log's verifier key.
func proven(name, entry, vkey string) error {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	record, err := os.ReadFile(entry)
	if err != nil {
		return err
	}
	head, checkpoint, found := strings.Cut(string(content), "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return fmt.Errorf("%s: no proof", name)
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, err := open([]byte(checkpoint), verifier)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n, tlog.RecordHash(record)); err != nil {
		return err
	}
	fmt.Printf("proven %d of %d\n", n, tree.N)
	return nil
}

type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func main() {
	var olds, witnesses list
	flag.Var(&olds, "old", "a checkpoint that was fetched before")
	flag.Var(&witnesses, "witness", "the verifier key of a witness that has to have cosigned")
	proof := flag.String("proof", "", "a tlog-proof, to be verified without a log")
	flag.Parse()
	if flag.NArg() < 2 {
		flag.Usage()
		os.Exit(2)
	}
	if *proof != "" {
		if err := proven(*proof, flag.Arg(0), flag.Arg(1)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	prefix := strings.TrimSuffix(flag.Arg(0), "/")
	if err := verify(client{prefix}, flag.Arg(1), olds, witnesses, flag.Args()[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
