"""Ordinary work under governance: what it does is no drift. For the test of false findings, and for scripts/soak."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.monitoring import PYTHON
from tests.running import SECONDS

if TYPE_CHECKING:
    from tests.running import Running

_PYTHON: Final = (
    "import json,mmap,os,socket,sqlite3,ssl,subprocess,sys,tempfile,threading,time;print('up',flush=True);"
    "s=socket.socket();s.bind(('127.0.0.1',0));s.listen();kept=[s];"
    "[(kept.append(socket.create_connection(s.getsockname())),kept.append(s.accept()),"
    "subprocess.run(['/bin/true'],check=True),(os.fork() or os._exit(0)) and os.wait(),"
    "threading.Thread(target=time.sleep,args=(.01,)).start(),sqlite3.connect(':memory:').execute('select 1'),"
    "ssl.create_default_context(),tempfile.TemporaryFile().write(b'x'),json.dumps(list(range(999))),time.sleep(.05),"
    "kept.__delitem__(slice(1,None))) for line in sys.stdin]"
)
_NODE: Final = (
    "console.log('up');let n=0;function f(x){return x<2?x:f(x-1)+f(x-2)};"
    "require('readline').createInterface({input:process.stdin}).on('line',()=>{n+=f(22);require('zlib').gzipSync('x'.repeat(9999))})"
)
_SHELL: Final = "echo up; while read line; do ls /usr/bin | sort -r | head -50 | wc -l > /dev/null; (true | wc -c > /dev/null & wait); done"


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


def _programs(folder: Path, *, java: bool) -> dict[str, list[str]]:
    """Command lines by name, of what this host has. Each says `up`, and does its work once for every line of its input."""
    found = {"python": [str(PYTHON), "-ISs", "-c", _PYTHON], "shell": ["/bin/sh", "-c", _SHELL]}
    if (node := shutil.which("node")) is not None:
        found["node"] = [str(Path(node).resolve()), "-e", _NODE]
    if java and (virtual_machine := shutil.which("java")) is not None:
        source = folder / "Work.java"
        source.write_text(_JAVA)
        found["java"] = [str(Path(virtual_machine).resolve()), str(source)]
    return {name: [str(Path(command[0]).resolve()), *command[1:]] for name, command in found.items()}


class Workload:
    """All of it, each program governed and under an artifact of its own. `java`: it takes long to start."""

    def __init__(self, running: Running, *, java: bool = False) -> None:
        for name in ("ls", "sort", "head", "wc", "true"):
            program = Path(shutil.which(name) or f"/bin/{name}").resolve()
            running.add(running.issue(program, name=f"{name}.json"))
        self.processes: dict[str, subprocess.Popen[str]] = {}
        for name, command in _programs(running.folder, java=java).items():
            words = [part for word in command for part in ("--argv", word)]
            scripts = [part for word in command if word.endswith(".java") for part in ("--script", word)]
            running.add(running.issue(Path(command[0]), *words, *scripts, name=f"{name}.json"))
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

    def work(self) -> None:
        """Each of them does its work once; how long that takes is its own affair."""
        for name, process in self.processes.items():
            assert process.poll() is None, name
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def close(self) -> None:
        """End it."""
        for process in self.processes.values():
            process.kill()
            process.communicate(timeout=SECONDS)
