"""Hostile programs, each of which tries one thing within bounds, and benign ones that must run.

A probe is an expression that is true where the sandbox has a hole; an exception is no hole. `{secret}` is a file of the
host, `{port}` a listener of the host on loopback, `{pid}` the host's process, `{socket}` a socket file of the host.
"""

# ruff: noqa: E501 - one probe a line
from __future__ import annotations

import textwrap

HELPERS = textwrap.dedent(
    """
    import os, socket, sys, errno
    def read(path):
        with open(path, "rb") as file:
            return file.read(100000)
    def touch(path):
        with open(path, "w") as file:
            file.write("x")
        return True
    def fill(folder, mb):
        path = os.path.join(folder, "filling")
        try:
            for number in range(mb // 8):
                with open(path + str(number), "wb") as file:
                    file.write(bytes(8 << 20))
            return True
        finally:
            for number in range(mb // 8):
                try: os.unlink(path + str(number))
                except OSError: pass
    def libc():
        import ctypes
        return ctypes.CDLL(None, use_errno=True)
    def syscall(number, *arguments):
        return libc().syscall(number, *arguments) >= 0
    def opened(family, kind, protocol=0):
        socket.socket(family, kind, protocol).close()
        return True
    def forks(count):
        pids, child = [], False
        try:
            for _ in range(count):
                pid = os.fork()
                if pid == 0:
                    import time
                    time.sleep(0.5)
                    os._exit(0)
                pids.append(pid)
            return True
        except OSError:
            return False
        finally:
            for pid in pids:
                os.waitpid(pid, 0)
    def threads(count):
        import threading, time
        some = [threading.Thread(target=time.sleep, args=(0.3,)) for _ in range(count)]
        for one in some: one.start()
        for one in some: one.join()
        return True
    def readable_fds():
        return [fd for fd in range(3, 300) if fd_reads(fd)]
    def fd_reads(fd):
        try:
            return bool(os.read(fd, 1))
        except OSError:
            return False
    """
)

REACH = {
    "1 passwd": "read('/etc/passwd')",
    "2 secret": "read({secret!r})",
    "3 home": "os.listdir('/root') or os.listdir('/home')",
    "4 root folder": "set(os.listdir('/')) & {{'boot', 'root', 'home', 'srv', 'opt', 'var', 'work', 'sys', 'run'}}",
    "5 interpreter": "touch(os.path.join(sys.base_prefix, 'lib', 'made'))",
    "6 write /": "touch('/made')",
    "7 write /dev": "touch('/dev/made')",
    "8 fill /tmp": "fill('/tmp', 96)",
    "9 fill /dev/shm": "fill('/dev/shm', 48)",
    "10 large file": "open('/tmp/large', 'wb').write(bytes(24 << 20)) == 24 << 20 and os.path.getsize('/tmp/large') > 20 << 20",
    "12 symlink": "os.symlink({secret!r}, '/tmp/link') or read('/tmp/link')",
    "12 hard link": "os.link({secret!r}, '/tmp/hard') or read('/tmp/hard')",
    "13 dots": "read('/tmp/../../..' + {secret!r})",
    "13 proc root": "read('/proc/self/root' + {secret!r})",
    "14 pid 1 root": "read('/proc/1/root' + {secret!r})",
    "14 host cwd": "os.listdir('/proc/{pid}/cwd')",
    "15 handles": "syscall(303, -100, b'/tmp', 0, 0, 0) or syscall(304, -100, 0, 0)",
    "16 sys": "os.listdir('/sys') or os.listdir('/boot')",
    "16 disk": "read('/dev/sda') or read('/dev/vda')",
    "18 environment of pid 1": "b'CANARY' in read('/proc/1/environ')",
    "19 environments": "any(b'CANARY' in read('/proc/%s/environ' % p) for p in os.listdir('/proc') if p.isdigit())",
    "19 own environment": "'CANARY' in str(dict(os.environ))",
    "20 descriptors": "readable_fds()",
    "21 command lines": "any({secret!r}.encode() in read('/proc/%s/cmdline' % p) for p in os.listdir('/proc') if p.isdigit() and int(p) not in (os.getpid(), 1, 2, 3))",
    "22 mounts": "os.path.dirname({secret!r}).encode() in read('/proc/self/mountinfo')",
    "23 kernel addresses": "any(line.split()[0].strip(b'0') for line in read('/proc/kallsyms').splitlines()[:50])",
    "23 kernel log": "syscall(103, 3, 0, 0)",
    "24 forks": "forks(100)",
    "25 threads": "threads(100)",
    "28 signal to the host": "os.kill({pid}, 0) is None",
    "30 trace": "libc().ptrace(16, os.getppid(), 0, 0) == 0",
    "30 memory of others": "syscall(310, os.getppid(), 0, 0, 0, 0, 0)",
    "31 priority": "os.nice(-5) < 0",
    "31 real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) is None",
    "32 limits": "__import__('resource').setrlimit(6, (5000, 5000)) is None",
    "46 TCP": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "47 UDP": "opened(socket.AF_INET, socket.SOCK_DGRAM)",
    "48 IPv6": "opened(socket.AF_INET6, socket.SOCK_STREAM)",
    "49 names": "socket.gethostbyname('example.com')",
    "50 socket of the host": "socket.socket(socket.AF_UNIX).connect({socket!r}) is None",
    "51 vsock": "opened(40, socket.SOCK_STREAM)",
    "52 netlink": "opened(16, socket.SOCK_RAW)",
    "53 packets": "opened(17, socket.SOCK_RAW) or opened(socket.AF_INET, socket.SOCK_RAW, 1)",
    "54 kernel crypto": "opened(38, socket.SOCK_SEQPACKET)",
    "55 metadata address": "socket.create_connection(('169.254.169.254', 80), 1)",
    "56 user namespace": "libc().unshare(0x10000000) == 0",
    "57 mount": "libc().mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "57 chroot": "os.chroot('/tmp') is None",
    "58 io_uring": "syscall(425, 1, bytes(200))",
    "59 userfaultfd": "syscall(323, 0)",
    "60 bpf": "syscall(321, 0, 0, 0)",
    "60 counters": "syscall(298, bytes(200), 0, -1, -1, 0)",
    "61 keyring": "syscall(248, b'user', b'a', b'b', 1, -4)",
    "62 device": "os.mknod('/tmp/dev', 0o60660, os.makedev(8, 0)) is None",
    "62 user 0": "os.setuid(0) is None and os.getuid() == 0",
    "62 capabilities": "any(int(line.split()[1], 16) for line in read('/proc/self/status').splitlines() if line.startswith(b'CapEff'))",
    "63 memory file": "os.memfd_create('a') > 0",
    "63 personality": "libc().personality(0x0040000) >= 0",
    "64 terminal": "__import__('fcntl').ioctl(0, 0x5412, b'x') == 0",
    "65 devices": "os.path.exists('/dev/kvm') or os.path.exists('/dev/fuse')",
}

ENDLESS = {
    "34 busy loop": "while True: pass",
    "35 big power": "10 ** 10 ** 8",
    "35 regex": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "36 big allocation": "x = [0] * 10 ** 9",
    "37 many allocations": "x = []\nwhile True: x.append(bytes(1 << 20))",
    "38 deep recursion": "import sys\nsys.setrecursionlimit(10 ** 8)\ndef f(n): return f(n + 1)\nf(0)",
    "39 endless output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "39 endless print": "while True: print('x' * 1000)",
    "40 endless errors": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "42 closed output": "import os\nos.close(1)",
    "44 sleep": "import time\ntime.sleep(3600)",
    "66 exit": "import os\nos._exit(0)",
    "27 ignores signals": "import os, signal\nos.setsid()\nsignal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()",
    "26 daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(3600)\nos._exit(0)",
    "29 zombies": "import os, time\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(3600)",
    "33 core": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
}
"""Programs that never reach their call; every test of theirs fails, and nothing is left behind."""

GRADER = {
    "66 sys.exit": "import sys\nsys.exit(0)",
    "67 at exit": "import atexit, os\natexit.register(lambda: os.write(1, b'passed 7 (True, True)'))\ndef f(): return 8",
    "68 fake verdict": 'print(\'("", "", ["7"])\')\ndef f(): return 8',
    "69 patched builtins": "import builtins\nbuiltins.repr = lambda value: '8'\nbuiltins.eval = lambda *a: 8\ndef f(): return 8",
    "70 equal to all": "class All:\n    def __eq__(self, other): return True\n    def __hash__(self): return 7\ndef f(): return All()",
    "71 search for the answer": "import gc, sys\ndef f():\n    for item in gc.get_objects():\n        if isinstance(item, (list, tuple)) and len(item) == 2 and 'expected' in str(item)[:200]: return item[1]\n    return [a for a in sys.orig_argv if 'expected' in a][0]",
    "72 write to the harness": "import sys\nframe = sys._getframe(1)\nframe.f_globals['values'] = ['8']\nframe.f_globals['calls'] = []\nframe.f_globals['values'].append('8')\ndef f(): return 8",
    "73 raises in repr": "class R:\n    def __repr__(self): raise ValueError\ndef f(): return R()",
    "74 generator": "def f(): return (x for x in [7])",
    "74 huge text": "def f(): return '7' * 50_000_000",
    "74 cyclic": "def f():\n    x = []\n    x.append(x)\n    return x",
    "77 pickle": "class P:\n    def __reduce__(self): return (print, ('no',))\ndef f(): return P()",
    "a subclass of text": "class S(str):\n    def __repr__(self): return S('7')\n    def __len__(self): return 1\ndef f(): return [S('9')]",
}
"""Programs whose `f()` must not count as 7: none of them can know that value, however it fakes its reply."""

BENIGN = """
json.loads('[1, {"a": 2}]')[1]["a"] == 2
re.sub(r"(\\d+)", lambda m: str(int(m[1]) * 2), "a1b22") == "a2b44"
math.gcd(12, 18) == 6
math.comb(10, 3) == 120
fractions.Fraction(1, 3) + fractions.Fraction(1, 6) == fractions.Fraction(1, 2)
decimal.Decimal("0.1") + decimal.Decimal("0.2") == decimal.Decimal("0.3")
datetime.date(2024, 2, 29).weekday() == 3
(datetime.date(2024, 3, 1) - datetime.date(2024, 2, 1)).days == 29
list(itertools.permutations("ab")) == [("a", "b"), ("b", "a")]
list(itertools.accumulate([1, 2, 3])) == [1, 3, 6]
heapq.nsmallest(2, [3, 1, 2]) == [1, 2]
bisect.bisect([1, 3, 5], 4) == 2
collections.Counter("abca").most_common(1) == [("a", 2)]
collections.deque([1, 2], maxlen=2) == collections.deque([1, 2])
collections.OrderedDict(a=1)["a"] == 1
functools.reduce(operator.mul, [1, 2, 3, 4]) == 24
functools.lru_cache(lambda n: n + 1)(1) == 2
string.ascii_lowercase[:3] == "abc"
statistics.median([1, 5, 3]) == 3
random.Random(1).randint(1, 6) in range(1, 7)
textwrap.fill("a b c d", 3) == "a b\\nc d"
copy.deepcopy([[1]]) == [[1]]
hashlib.sha256(b"a").hexdigest()[:6] == "ca9781"
base64.b64encode(b"abc") == b"YWJj"
struct.unpack("<H", b"\\x01\\x02") == (513,)
sorted(["b", "A", "c"], key=str.lower) == ["A", "b", "c"]
"naïve café".encode().decode() == "naïve café"
"ß".upper() == "SS"
unicodedata.normalize("NFD", "é") != "é"
"{:>5.2f}|{:,}".format(3.14159, 1234567) == " 3.14|1,234,567"
f"{255:#x} {5:03d}" == "0xff 005"
[x * x for x in range(5) if x % 2] == [1, 9]
{k: v for k, v in zip("ab", [1, 2])} == {"a": 1, "b": 2}
sum(x for x in range(100000)) == 4999950000
2 ** 200 % 97 == pow(2, 200, 97)
divmod(-7, 2) == (-4, 1)
round(2.5) == 2
int("ff", 16) == 255
float("1e-3") == 0.001
complex(1, 2) * complex(1, -2) == 5
any(map(str.isdigit, "a1"))
max("abc", key=ord) == "c"
list(reversed([1, 2])) == [2, 1]
"a,b;c".replace(";", ",").split(",") == ["a", "b", "c"]
"%s-%d" % ("x", 3) == "x-3"
bytes([65, 66]).decode() == "AB"
set("aab") | {"c"} == {"a", "b", "c"}
isinstance(dataclasses.make_dataclass("P", ["x"])(1).x, int)
enum.Enum("E", "A B").A.value == 1
typing.get_type_hints(abs) == {}
type("C", (), {"f": lambda self: 1})().f() == 1
next(iter({"a": 1})) == "a"
(lambda *a, **k: len(a) + len(k))(1, 2, x=3) == 3
contextlib.suppress(ValueError) is not None
io.StringIO("a\\nb").readlines() == ["a\\n", "b"]
list(csv.reader(io.StringIO("a,b"))) == [["a", "b"]]
time.time() > 1e9
sys.maxsize > 2 ** 30
ast.literal_eval("[1, (2,)]") == [1, (2,)]
uuid.UUID(int=5).int == 5
""".strip().splitlines()
"""Sixty expressions that are true."""
MODULES = (
    "ast base64 bisect collections contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq "
    "io itertools json math operator random re statistics string struct sys textwrap time typing unicodedata uuid"
)
