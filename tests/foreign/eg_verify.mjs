// Verifies receipts as docs/RECEIPTS.md of @11ai/execution-governance says, with Node's own cryptography and no code of ours.
// usage: node eg_verify.mjs RECEIPTS.jsonl PUBLIC_KEY
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const [path, key] = process.argv.slice(2);
const sha3 = (data) => createHash("sha3-512").update(data).digest();
const canonical = (value) =>
  value !== null && typeof value === "object"
    ? Array.isArray(value)
      ? `[${value.map(canonical).join(",")}]`
      : `{${Object.keys(value)
          .sort()
          .map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`)
          .join(",")}}`
    : JSON.stringify(value);

const publicKey = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: key }, format: "jwk" });
const kid = sha3(Buffer.from(key, "base64url")).toString("hex").slice(0, 16);
const breaks = [];
const counts = { allow: 0, deny: 0 };
let previous = "genesis";

readFileSync(path, "utf8")
  .split("\n")
  .filter((line) => line)
  .forEach((line, index) => {
    const { sig, ...unsigned } = JSON.parse(line);
    if (unsigned.prevReceiptHash !== previous) breaks.push(`line ${index + 1}: chain`);
    if (unsigned.kid !== kid) breaks.push(`line ${index + 1}: kid`);
    if (!verify(null, sha3(canonical(unsigned)), publicKey, Buffer.from(sig, "base64url")))
      breaks.push(`line ${index + 1}: signature`);
    counts[unsigned.decision] += 1;
    previous = sha3(canonical({ ...unsigned, sig })).toString("hex");
  });

console.log(JSON.stringify({ ...counts, breaks }));
process.exit(breaks.length ? 1 : 0);
