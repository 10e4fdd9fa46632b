"""The launcher behind `egs run`: asks the daemon for one exec, then becomes the program.

It runs as the caller and is not trusted: what it says is compared with what the kernel says, by the daemon
before the exec and by the gate at the exec. It keeps its pid, terminal, signal masks and descriptors.

It is in the way of every launch, so it starts fast: nothing but C modules is imported on the way to an exec
without constraints (`socket`, `json` and `signal` alone cost 40 Python modules and 8 ms, `os` one).
"""

# ruff: noqa: PLC0415, PTH123
# Imports where they are needed, no pathlib and no `__future__`: all of it for the reason above.

import _signal  # type: ignore[import-not-found]  # typeshed has no stub; `signal` itself imports enum
import _socket
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    Authorize = Callable[[str, list[str], str | None], tuple[bytes, str | None] | None]

USAGE = """\
usage: egs run [--artifact FILE] [--argv0 NAME] [--svid FILE] [--] CMD [ARG ...]

Ask the daemon to authorize CMD with these arguments, and become it.

  --artifact FILE   the authorization artifact; without it the daemon looks among its standing ones, and if none
                    fits, the authority of egs.toml, or this host's, is asked for one
  --argv0 NAME      what CMD is told that it is called (default: CMD)
  --svid FILE       a JWT-SVID of this workload, for an artifact that names its SPIFFE id

Exit codes: the program's own; 126 refused, 127 no such program, 4 daemon unreachable, 2 wrong usage.
"""

EXIT_USAGE, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_NOT_FOUND = 2, 4, 126, 127

MAX_ARTIFACT = 64 * 1024
MAX_FRAME = 1024 * 1024
MAX_SVID = 16 * 1024
ANSWER_SECONDS = 120  # hashing a very large program takes a while

_EPERM = 1
_TYPE, _REGULAR = 0o170000, 0o100000  # S_IFMT, S_IFREG
_SEARCH = b"/bin:/usr/bin"  # as execvp(3) without PATH
_CHUNK = 64 * 1024
_HEAD = 4  # bytes of the length before a message
_GO = b'{"type":"go"}'
_CONSTRAIN = b'{"type":"constrain",'
_READY = b'{"op":"ready"}'
_NO_GRANT = b'"reason":"no_grant"'
_ESCAPES = {34: '\\"', 92: "\\\\"} | {code: f"\\u{code:04x}" for code in range(32)}


class Stop(Exception):
    """The launch ends here, with this exit code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Command:
    """What was asked for on the command line."""

    __slots__ = ("argv", "artifact", "name", "svid")

    def __init__(self, name: str, argv: list[str], artifact: str | None, svid: str | None = None) -> None:
        self.name = name
        self.argv = argv
        self.artifact = artifact
        self.svid = svid


def main(arguments: list[str], authorize: "Authorize | None" = None) -> int:
    """Run `egs run` with these arguments. Returns an exit code only when no program was executed.

    `authorize` asks for an artifact when none was given and none stands: for a program, its arguments and an SVID. It returns it with
    the SVID to show for it, None where nobody can be asked, and raises `Stop` when it is refused.
    """
    _default_interrupt()
    try:
        command = parse(arguments)
        if command is None:
            sys.stdout.write(USAGE)
            return 0
        _launch(command, authorize)
    except Stop as stop:
        sys.stderr.write(f"egs run: {stop.message}\n")
        return stop.code


def parse(arguments: list[str]) -> Command | None:
    """Understand the arguments after `egs run`; None asks for help.

    Raises:
        Stop: with exit code 2.
    """
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        if word in ("-h", "--help"):
            return None
        name, equals, value = word.partition("=")
        if name not in ("--artifact", "--argv0", "--svid"):
            raise Stop(EXIT_USAGE, f"unknown option {word}\n{USAGE}")
        if not equals:
            if not rest:
                raise Stop(EXIT_USAGE, f"{name} needs a value\n{USAGE}")
            value = rest.pop(0)
        options[name] = value
    if not rest:
        raise Stop(EXIT_USAGE, f"no command was given\n{USAGE}")
    argv = [options.get("--argv0", rest[0]), *rest[1:]]
    return Command(rest[0], argv, options.get("--artifact"), options.get("--svid"))


def find_program(name: str, search: str) -> str:
    """The path that execvp(3) would execute.

    Raises:
        Stop: there is none (127), or only files that may not be executed (126).
    """
    if "/" in name:
        return name
    found = ""
    for folder in search.split(":"):
        candidate = f"{folder or '.'}/{name}"
        if _is_file(candidate):
            if posix.access(candidate, posix.X_OK):
                return candidate
            found = candidate
    if found:
        raise Stop(EXIT_REFUSED, f"{found}: permission denied")
    raise Stop(EXIT_NOT_FOUND, f"{name}: command not found")


def quote(text: str) -> str:
    """`text` as a JSON string."""
    return f'"{text.translate(_ESCAPES)}"'


def request(program: str, argv: list[str], artifact: bytes | None, svid: str | None = None) -> bytes:
    """The launch request as a frame.

    Raises:
        Stop: an argument is not UTF-8, or all together are too long.
    """
    fields = [
        '"op":"launch"',
        f'"program":{quote(program)}',
        f'"argv":[{",".join(map(quote, argv))}]',
    ]
    if artifact is not None:
        import binascii

        fields.append(f'"artifact":"{binascii.b2a_base64(artifact, newline=False).decode()}"')
    if svid is not None:
        fields.append(f'"svid":{quote(svid)}')
    try:
        content = f"{{{','.join(fields)}}}".encode()
    except UnicodeEncodeError as error:
        raise Stop(EXIT_REFUSED, "refused: an argument is not UTF-8 [argv_unreadable]") from error
    if len(content) > MAX_FRAME:
        raise Stop(EXIT_REFUSED, f"refused: the arguments need more than {MAX_FRAME} bytes [protocol_error]")
    return frame(content)


def frame(content: bytes) -> bytes:
    """Put the length before `content`."""
    return len(content).to_bytes(4, "big") + content


def socket_path(environment: "Mapping[bytes, bytes]") -> str:
    """Where the daemon listens; `paths.py` says the same at the cost of importing pathlib and hashlib."""
    root = _decoded(environment.get(b"EGS_ROOT", b""))
    if not root:
        return "/run/egs/egsd.sock"
    above = "" if root.startswith("/") else f"{posix.getcwd()}/"
    return f"{above}{root.rstrip('/')}/run/egs/egsd.sock"


def _decoded(name: bytes) -> str:
    """As `os.fsdecode`."""
    return name.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def _is_file(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & _TYPE == _REGULAR
    except (OSError, ValueError):
        return False


def _default_interrupt() -> None:
    """Ctrl-C ends the launcher as it would end the program. Not when the caller ignores it (nohup)."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def _launch(command: Command, authorize: "Authorize | None") -> "NoReturn":
    program = find_program(command.name, _decoded(posix.environ.get(b"PATH", _SEARCH)))
    artifact = None if command.artifact is None else _read_artifact(command.artifact)
    svid = None if command.svid is None else read_svid(command.svid)
    daemon, answer = _ask(program, command.argv, artifact, svid)
    if authorize is not None and artifact is None and _NO_GRANT in answer:
        given = authorize(program, command.argv, svid)
        if given is not None:
            artifact, svid = given
            daemon.close()
            daemon, answer = _ask(program, command.argv, artifact, svid)
    _restore_signals()
    if answer != _GO:
        _constrain(answer)
        posix.write(daemon.fileno(), frame(_READY))
        answer = _receive(daemon.fileno())
        if answer != _GO:
            raise _refusal(answer)
    try:
        _execute(program, command.argv)
    except PermissionError as error:
        raise _refused_by_the_gate(daemon.fileno()) or Stop(EXIT_REFUSED, f"{program}: {error}") from error


def _ask(
    program: str, argv: list[str], artifact: bytes | None, svid: str | None
) -> tuple[_socket.socket, bytes]:
    """Ask the daemon; the connection and its first answer."""
    descriptor = _open_program(program)
    message = request(program, argv, artifact, svid)
    daemon = _connect(socket_path(posix.environ))
    _send(daemon, message, descriptor)
    _restore_environment()
    if artifact is not None and constrains(artifact):
        from egs_kernel import apply

        apply.load()  # 4 ms, while the daemon verifies
    return daemon, _receive_first(daemon)


def _open_program(program: str) -> int:
    try:
        return posix.open(program, posix.O_PATH | posix.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Stop(EXIT_NOT_FOUND, f"{program}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise Stop(EXIT_REFUSED, f"{program}: {error}") from error


def _read_artifact(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read(MAX_ARTIFACT + 1) or b""
    except OSError as error:
        raise Stop(EXIT_USAGE, f"cannot read the artifact {path}: {error.strerror}") from error
    if len(content) > MAX_ARTIFACT:
        raise Stop(EXIT_REFUSED, f"refused: {path} is larger than {MAX_ARTIFACT} bytes [artifact_too_large]")
    return content


def read_svid(path: str) -> str:
    """The JWT-SVID in a file.

    Raises:
        Stop: it cannot be read, or is none.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read(MAX_SVID + 1) or b""
    except OSError as error:
        raise Stop(EXIT_USAGE, f"cannot read the SVID {path}: {error.strerror}") from error
    if len(content) > MAX_SVID or not content.isascii():
        raise Stop(EXIT_REFUSED, f"refused: {path} is no JWT-SVID [svid_invalid]")
    return content.decode().strip()


def _connect(path: str) -> _socket.socket:
    daemon = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    timeval = ANSWER_SECONDS.to_bytes(8, sys.byteorder) + bytes(8)
    daemon.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeval)
    try:
        daemon.connect(path)
    except OSError as error:
        raise Stop(
            EXIT_UNREACHABLE,
            f"the daemon cannot be reached at {path}: {error.strerror or error} [daemon_unreachable]\n"
            "Start it: systemctl start egsd (or: egsd --foreground)",
        ) from error
    return daemon


def _send(daemon: _socket.socket, message: bytes, descriptor: int) -> None:
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))
    try:
        sent = daemon.sendmsg([message], [rights], _socket.MSG_NOSIGNAL)
        if sent < len(message):
            daemon.sendall(message[sent:], _socket.MSG_NOSIGNAL)
    except OSError as error:
        raise _lost(error.strerror) from error
    posix.close(descriptor)


def _receive_first(daemon: _socket.socket) -> bytes:
    """The first answer. A descriptor that comes with it stays open: the daemon looks for it, we need not know it."""
    try:
        head = daemon.recvmsg(_CHUNK, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)[0]
    except OSError as error:
        raise _lost(error.strerror) from error
    if not head:
        raise _lost("it closed the connection")
    return _receive(daemon.fileno(), head)


def _receive(daemon: int, received: bytes = b"") -> bytes:
    """One frame, of which this was received; by read(2) alone: a filter may not allow much else by now.

    As few calls as can be: the daemon may see each of them. What it says next it says when we have done something.
    """
    while len(received) < _HEAD or len(received) < _end(received):
        try:
            data = posix.read(daemon, _CHUNK)
        except OSError as error:
            raise _lost(error.strerror) from error
        if not data:
            raise _lost("it closed the connection")
        received += data
    if len(received) > _end(received):
        raise _lost("it does not speak our protocol")
    return received[_HEAD:]


def _end(received: bytes) -> int:
    length = int.from_bytes(received[:_HEAD], "big")
    if not 0 < length <= MAX_FRAME:
        raise _lost("it does not speak our protocol")
    return _HEAD + length


def _lost(why: str | None) -> Stop:
    return Stop(EXIT_UNREACHABLE, f"the daemon gave no answer: {why} [daemon_unreachable]")


def _constrain(answer: bytes) -> None:
    """Do to this process what the daemon asks for. Irrevocable.

    Raises:
        Stop: the answer was a refusal, or the kernel does not do it.
    """
    if not answer.startswith(_CONSTRAIN):
        raise _refusal(answer)
    from egs_kernel import apply

    try:
        apply.apply(answer)
    except apply.UnknownStepError as error:
        raise Stop(EXIT_REFUSED, f"the daemon asks for a step that is unknown here: {error}") from error
    except OSError as error:
        raise Stop(
            EXIT_REFUSED, f"the kernel does not take a constraint: {error} [constraint_unenforceable]"
        ) from error


def _refusal(answer: bytes) -> Stop:
    message, reason, next_step = (text_of(answer, field) for field in ("message", "reason", "next_step"))
    if not reason:
        return _lost("it does not speak our protocol")
    return Stop(EXIT_REFUSED, f"refused: {message} [{reason}]" + (f"\n{next_step}" if next_step else ""))


def text_of(answer: bytes, field: str) -> str:
    """A text in one of the daemon's answers; "" when it has none of this name.

    `json` imports 20 modules in Python; its scanner alone is C. A quote within a text is escaped, so the field's
    name between quotes is found nowhere else.
    """
    from _json import scanstring

    content = answer.decode()
    start = f'"{field}":"'
    found = content.find(start)
    return "" if found < 0 else scanstring(content, found + len(start), True)[0]


def constrains(artifact: bytes) -> bool:
    """Whether steps are likely to come. Only time depends on it."""
    from binascii import Error, a2b_base64

    payload = artifact.partition(b'"payload":"')[2].partition(b'"')[0]
    try:
        return b'"constraints":' in a2b_base64(payload)
    except Error:
        return False  # the daemon says what is wrong with it


def _restore_environment() -> None:
    """Python sets LC_CTYPE in the C locale (PEP 538); the program gets the environment that we got."""
    if posix.environ.get(b"LC_CTYPE") == b"C.UTF-8":
        with open("/proc/self/environ", "rb") as file:
            given = b"\0" + file.read()
        if b"\0LC_CTYPE=" not in given:
            posix.unsetenv(b"LC_CTYPE")


def _restore_signals() -> None:
    """Python ignores these two from its start on, and an ignored signal stays ignored over an exec."""
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)


def _execute(program: str, argv: list[str]) -> "NoReturn":
    try:
        posix.execv(program, argv)
    except OSError as error:
        if error.errno == _EPERM:
            raise
        code = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_REFUSED
        raise Stop(code, f"{program}: {error.strerror}") from error


def _refused_by_the_gate(daemon: int) -> Stop | None:
    """What the daemon says of an exec that failed, as soon as it has heard of it; None: it was not the gate's doing."""
    try:
        return _refusal(_receive(daemon))
    except Stop:
        return None
