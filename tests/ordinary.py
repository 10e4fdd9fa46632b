"""Ordinary work under governance: what it does is no drift. For the test of false findings, and for scripts/soak."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.harness import COMMAND_SECONDS
from tests.monitoring import PYTHON
from tests.running import SECONDS

if TYPE_CHECKING:
    from tests.running import Running

_PYTHON: Final = """
import asyncio, hashlib, json, mmap, os, signal, socket, sqlite3, ssl, subprocess, sys, tempfile, threading, time
print('up', flush=True)
listening = socket.create_server(('127.0.0.1', 0))

async def answer(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def serve():
    server = await asyncio.start_server(answer, '127.0.0.1', 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b'asked\\n')
        await reader.read()
        writer.close()

for line in sys.stdin:
    with socket.create_connection(listening.getsockname()) as here, listening.accept()[0] as there:
        here.sendall(b'x')
        there.recv(1)
    subprocess.run(['/bin/true'], check=True)
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
    threads = [threading.Thread(target=hashlib.sha256, args=(b'x' * 99999,)) for _ in range(4)]
    [thread.start() for thread in threads] and [thread.join() for thread in threads]
    asyncio.run(serve())
    sqlite3.connect(':memory:').execute('select 1')
    ssl.create_default_context()
    with tempfile.TemporaryFile() as file, mmap.mmap(-1, 1 << 20) as memory:
        file.write(json.dumps(list(range(999))).encode())
        file.flush()
        memory[:5] = mmap.mmap(file.fileno(), 0)[:5]
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, .001)
    time.sleep(.05)
"""
_NODE: Final = """
console.log('up');
const http = require('http'), {Worker} = require('worker_threads'), {execFile} = require('child_process');
const server = http.createServer((_, answer) => answer.end(require('zlib').gzipSync('x'.repeat(9999)))).listen(0, '127.0.0.1');
const fibonacci = x => x < 2 ? x : fibonacci(x - 1) + fibonacci(x - 2);
require('readline').createInterface({input: process.stdin}).on('line', () => {
    fibonacci(22);
    new RegExp('(a+)+$').test('a'.repeat(20));
    http.get({host: '127.0.0.1', port: server.address().port, agent: false}, answer => answer.resume()).on('error', () => 0);
    execFile('/bin/true', () => 0);
    new Worker('require("crypto").pbkdf2Sync("a", "b", 999, 32, "sha256")', {eval: true});
});
"""
_SHELL: Final = """
echo up
while read line; do
    ls /usr/bin | sort -r | head -50 | wc -l > /dev/null
    (true | wc -c > /dev/null & wait)
    sort <<END | head -1 > /dev/null
$(ls /etc)
END
done
"""
_JAVA: Final = """
public class Work {
    public static void main(String[] given) throws Exception {
        System.out.println("up");
        var lines = new java.io.BufferedReader(new java.io.InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            var numbers = new java.util.Random(1).doubles(20000).parallel().sorted().sum();
            var thread = new Thread(() -> String.valueOf(numbers).hashCode());
            thread.start();
            thread.join();
        }
    }
}
"""
_NGINX: Final = """
user nobody nogroup;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    access_log {folder}/access.log;
    gzip on;
    gzip_types *;
    server {{
        listen 127.0.0.1:{port} reuseport;
        location / {{ root {folder}/www; sendfile on; }}
    }}
}}
"""
_RELOADS: Final = 20
"""Rounds from one `nginx -s reload` to the next."""
_TRIES: Final = 10
_VALID: Final = ("--valid-for", "1d")
"""Longer than any soak: what stood an hour alone would end it."""


def _programs(folder: Path, *, java: bool) -> dict[str, list[str]]:
    """Command lines by name, of what this host has. Each says `up`, and does its work once for every line of its input."""
    wanted = {
        "python": (str(PYTHON), ("-ISs",), "work.py", _PYTHON),
        "shell": ("sh", (), "work.sh", _SHELL),
        "node": ("node", (), "work.js", _NODE),
        **({"java": ("java", (), "Work.java", _JAVA)} if java else {}),
    }
    found = {}
    for name, (program, options, script, content) in wanted.items():
        path = shutil.which(program)
        if path is not None:
            (folder / script).write_text(content)
            found[name] = [str(Path(path).resolve()), *options, str(folder / script)]
    return found


class Web:
    """nginx as its package has it: a master process of root's, workers of nobody's, and somebody who reads from it."""

    def __init__(self, running: Running, program: str) -> None:
        folder = running.folder
        (folder / "www").mkdir()
        (folder / "www/page").write_text("read me\n" * 9999)
        # Nobody else gets the port meanwhile: who binds it with this option must be of the same user.
        self._kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._kept.bind(("127.0.0.1", 0))
        self._port: int = self._kept.getsockname()[1]
        configuration = folder / "nginx.conf"
        configuration.write_text(_NGINX.format(folder=folder, port=self._port))
        expected = folder / "nginx.toml"
        expected.write_text(f"[drift]\nlisten = [{self._port}]\n")
        running.add(running.issue(Path(program), "--constraints", str(expected), *_VALID, name="nginx.json"))
        running.wait_until_standing()
        self._running = running
        self._command = [program, "-c", str(configuration)]
        self._rounds = 0
        self._call()
        self.work()

    def work(self) -> None:
        """Two pages over one connection, one compressed; now and then its configuration is read again."""
        for _ in range(_TRIES):
            with contextlib.suppress(
                ConnectionError, http.client.HTTPException
            ):  # of a worker that is replaced
                self._read()
                break
        else:
            raise AssertionError("nginx answers nobody")
        self._rounds += 1
        if self._rounds % _RELOADS == 0:
            self._call("-s", "reload")

    def _read(self) -> None:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        ) as connection:
            for encoding in ("identity", "gzip"):
                connection.request("GET", "/page", headers={"Accept-Encoding": encoding})
                answer = connection.getresponse()
                assert (answer.status, bool(answer.read())) == (200, True)

    def close(self) -> None:
        """End it."""
        self._call("-s", "quit")
        self._kept.close()

    def _call(self, *more: str) -> None:
        subprocess.run(
            [*self._command, *more],
            preexec_fn=self._running.instance.cgroup.enter,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=COMMAND_SECONDS,
        )


class Workload:
    """All of it, each program governed and under an artifact of its own. `java`: it takes long to start."""

    def __init__(self, running: Running, *, java: bool = False) -> None:
        for name in ("ls", "sort", "head", "wc", "true"):
            program = Path(shutil.which(name) or f"/bin/{name}").resolve()
            running.add(running.issue(program, *_VALID, name=f"{name}.json"))
        self.processes: dict[str, subprocess.Popen[str]] = {}
        for name, command in _programs(running.folder, java=java).items():
            words = [part for word in command for part in ("--argv", word)]
            running.add(
                running.issue(Path(command[0]), *words, "--script", command[-1], *_VALID, name=f"{name}.json")
            )
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=running.instance.cgroup.enter,
                text=True,
                bufsize=1,
            )
            running.instance.reap_also(process.pid)
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n", (name, process.poll(), running.log())
            self.processes[name] = process
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
        self._web = None if nginx is None else Web(running, nginx)

    @property
    def programs(self) -> list[str]:
        """What runs."""
        return [*self.processes, *(["nginx"] if self._web is not None else [])]

    def work(self) -> None:
        """Each of them does its work once; how long that takes is its own affair."""
        for name, process in self.processes.items():
            assert process.poll() is None, name
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        if self._web is not None:
            self._web.work()

    def close(self) -> None:
        """End it."""
        if self._web is not None:
            self._web.close()
        for process in self.processes.values():
            process.kill()
            process.communicate(timeout=SECONDS)
