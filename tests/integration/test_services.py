"""The embedded services survive what happens to them, and leave nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from marco_search import local, locations
from marco_search.errors import BrokerUnavailable, DatabaseUnavailable, LocalServiceFailed
from marco_search.local import (
    LOCK_NAME,
    URLS_NAME,
    USERS_NAME,
    ServiceUrls,
    down,
    is_running,
    local_services,
    read_urls,
)
from marco_search.local.programs import as_servers, data_folder, is_open, purge
from marco_search.local.supervisor import Postgres
from marco_search.settings import Settings
from tests import embedded, memory
from tests.embedded import up

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of this test's own, in a path with spaces, stopped and deleted afterwards."""
    with memory.data_folder() as folder:
        yield folder / "a home"
        _stop(folder)


@pytest.fixture(scope="module")
def former_home() -> Iterator[Path]:
    """One whose services have run: making a database takes longer than starting it."""
    with memory.data_folder() as folder:
        with local_services(folder / "home"):
            pass
        yield folder / "home"
        _stop(folder)


@pytest.fixture
def _used(home: Path, former_home: Path) -> None:
    subprocess.run(["cp", "-a", former_home, home], check=True)


used = pytest.mark.usefixtures("_used")
"""The services have run in `home`: this test is not about the first start."""


@pytest.fixture
def closed_home() -> Iterator[Path]:
    """A home below a folder that nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="marco closed "))
    yield folder / "home"
    _stop(folder)
    shutil.rmtree(folder)


def _stop(folder: Path) -> None:
    for home in folder.iterdir():
        down(home)
        purge(home)


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not reached"
        time.sleep(0.02)


def _environment(home: Path) -> dict[str, str]:
    names = ("DATABASE_URL", "REDIS_URL")
    given = {name: value for name, value in os.environ.items() if name not in names}
    return given | {"MARCO_HOME": str(home)}


def _write(urls: ServiceUrls) -> None:
    with psycopg.connect(urls.database_url, autocommit=True) as session:
        session.execute("CREATE TABLE kept (word text)")
        session.execute("INSERT INTO kept VALUES ('row')")
    with redis.Redis.from_url(urls.redis_url) as client:
        client.rpush("kept", "message")


def _with_password(urls: ServiceUrls, password: str) -> str:
    parts = urlsplit(urls.database_url)
    return urls.database_url.replace(f":{parts.password}@", f":{password}@")


def _still_there(urls: ServiceUrls) -> bool:
    try:
        with psycopg.connect(urls.database_url, connect_timeout=5) as session:
            row = session.execute("SELECT word FROM kept").fetchone()
        with redis.Redis.from_url(urls.redis_url) as client:
            message = client.lindex("kept", 0)
    except (psycopg.OperationalError, redis.RedisError):
        return False
    assert (row, message) == (("row",), b"message")
    return True


@used
def test_killed_servers_come_back_with_the_same_ports_and_data(home: Path) -> None:
    with local_services(home) as urls:
        _write(urls)
        running = embedded.services(home)
        servers = (running["postgres"], running["redis"])
        for server in servers:
            os.kill(server.pid, signal.SIGKILL)
        _until(lambda: not any(server.alive for server in servers))
        _until(lambda: _still_there(urls))
        assert read_urls(home) == urls
        assert is_running(home)
    assert not is_running(home)


@used
def test_nothing_outlives_a_killed_supervisor(home: Path) -> None:
    urls = up(home)
    _write(urls)
    running = embedded.services(home)
    servers = [running[name].pid for name in ("postgres", "redis")]
    family = [*servers, *(child for server in servers for child in embedded.children(server))]
    os.kill(running["supervisor"].pid, signal.SIGKILL)
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
    assert not is_running(home)
    assert embedded.processes(str(home)) == []

    again = up(home)  # finds the state of the dead one, and all the data
    assert _still_there(again)
    assert down(home)


@used
def test_a_blocked_signal_of_its_user_does_not_let_a_server_outlive_the_supervisor(
    home: Path,
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        up(home)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    running = embedded.services(home)
    try:
        os.kill(running["supervisor"].pid, signal.SIGKILL)
        _until(lambda: not any(process.alive for process in running.values()))
    finally:
        for process in running.values():
            if process.alive:
                os.kill(process.pid, signal.SIGKILL)


@used
def test_users_of_a_killed_supervisor_keep_the_next_one(home: Path) -> None:
    with local_services(home):
        running = embedded.services(home)
        os.kill(running["supervisor"].pid, signal.SIGKILL)
        _until(lambda: not any(process.alive for process in running.values()))
        with local_services(home) as urls:
            _write(urls)
        assert _still_there(urls)
    assert not is_running(home)


def test_services_started_at_the_same_time_are_the_same(home: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.embedded import up;"
    code += "print(up(Path(sys.argv[1])).database_url)"

    def start(_: int) -> str:
        command = [sys.executable, "-c", code, str(home)]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()

    with ThreadPoolExecutor() as pool:
        first, second, third = pool.map(start, range(3))
    assert first == second == third
    assert embedded.processes(str(home / "data" / "postgres")) != []
    assert len(embedded.processes(f"marco_search.local.supervisor\0{home}")) == 1
    assert down(home)


def test_down_during_a_start_says_that_it_stopped_something(home: Path) -> None:
    home.mkdir()
    # A start whose servers do not answer yet: it needs the services, and there is a supervisor.
    with ThreadPoolExecutor(1) as pool, (home / USERS_NAME).open("w") as users:
        lock = (home / LOCK_NAME).open("w")
        for file, operation in ((users, fcntl.LOCK_SH), (lock, fcntl.LOCK_EX)):
            fcntl.flock(file, operation)
        stopped = pool.submit(down, home)
        _until(lambda: (home / USERS_NAME).read_text() == local.STOP)
        lock.close()
        assert stopped.result() is True
        assert down(home) is False, "who still needs the services does not make them run"
        users.close()


def test_down_twice_and_up_again(home: Path) -> None:
    home = home.with_name(os.fsdecode(b"Andr\xe9"))  # a name in Latin-1 will do
    _write(up(home))
    with local_services(home) as urls:
        assert _still_there(urls)
    assert is_running(home), "what `up` started outlasts a user"
    assert down(home) is True
    assert down(home) is False
    assert embedded.processes(str(home)) == []
    with local_services(home) as urls:
        assert _still_there(urls)
    assert not is_running(home)


@used
def test_services_end_with_the_last_user_even_when_it_is_killed(home: Path) -> None:
    code = "import sys; from pathlib import Path; from marco_search.local import local_services\n"
    code += "with local_services(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(home)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"in\n"
        with local_services(home) as urls:
            other.kill()
            other.wait()
            assert psycopg.connect(urls.database_url).execute("SELECT 1").fetchone() == (1,)
            supervisor = embedded.services(home)["supervisor"]
        _until(lambda: not supervisor.alive)

    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"in\n"
        supervisor = embedded.services(home)["supervisor"]
        other.kill()
    _until(lambda: not supervisor.alive)
    assert embedded.processes(str(home)) == []


@used
def test_a_process_that_was_forked_meanwhile_does_not_keep_them(home: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ends = fork.Event()
    with local_services(home):
        forked = fork.Process(target=ends.wait)
        forked.start()
    assert not is_running(home)
    with local_services(home) as urls:
        assert psycopg.connect(urls.database_url).execute("SELECT 1").fetchone() == (1,)
    assert forked.is_alive()
    ends.set()
    forked.join()


@used
def test_a_forked_process_that_leaves_does_not_stop_them(home: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from marco_search.local import is_running, local_services

home = Path(sys.argv[1])
with local_services(home):
    if (forked := os.fork()) == 0:
        sys.exit()
    os.waitpid(forked, 0)
    print(is_running(home))
print(is_running(home))
"""
    words = [sys.executable, "-c", code, str(home)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]


@used
def test_in_the_foreground_until_down_or_a_signal(home: Path) -> None:
    command = [f"{sys.prefix}/bin/marco", "up", "--foreground"]
    for number in (None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with subprocess.Popen(command, env=_environment(home), stdout=subprocess.PIPE) as other:
            assert other.stdout
            assert other.stdout.readline().startswith(b"Postgres")
            assert is_running(home)
            if number is None:
                assert down(home)
            else:
                other.send_signal(number)
            other.wait()
        assert not is_running(home)
        assert embedded.processes(str(home)) == []


def test_below_a_closed_folder(closed_home: Path) -> None:
    with local_services(closed_home) as urls:
        _write(urls)
        assert closed_home.parent.stat().st_mode & 0o777 == 0o700, "no folder was opened"
    with local_services(closed_home.parent / ".." / closed_home.parent.name / "home") as urls:
        assert _still_there(urls)
    if os.geteuid() == 0:
        elsewhere = data_folder(closed_home)
        assert closed_home not in elsewhere.parents
        copy = closed_home.with_name("copy")
        shutil.copytree(closed_home, copy)
        with local_services(copy):
            assert data_folder(copy) != elsewhere, "a copy has data of its own"


@used
def test_copies_started_at_the_same_moment_do_not_take_each_others_ports(home: Path) -> None:
    copies = [home.with_name(name) for name in ("first", "second", "third")]
    for copy in copies:
        subprocess.run(["cp", "-a", home, copy], check=True)
    with ThreadPoolExecutor() as threads:
        started = list(threads.map(up, copies))
    ports = [urlsplit(url).port for urls in started for url in (urls.database_url, urls.redis_url)]
    assert len(set(ports)) == len(ports)
    for copy, urls in zip(copies, started, strict=True):
        _write(urls)
        assert read_urls(copy) == urls


def test_a_home_that_was_moved_away_does_not_disturb_the_next(home: Path) -> None:
    before = up(home)
    supervisor = embedded.services(home)["supervisor"]
    os.kill(supervisor.pid, signal.SIGSTOP)
    home.rename(home.with_name("moved"))
    after = up(home)
    os.kill(supervisor.pid, signal.SIGCONT)
    _until(lambda: not supervisor.alive)
    assert before != after == read_urls(home)
    assert is_running(home)


def test_strangers_stay_out(home: Path) -> None:
    with local_services(home) as urls:
        password, broker = urlsplit(urls.database_url).password, urlsplit(urls.redis_url)
        assert password and broker.password and broker.port
        for url in (urls.database_url, urls.database_url.replace(password, "x")):
            wrong = url.replace(f":{password}@", "@")
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(wrong, connect_timeout=5, passfile="/nonexistent")
        with (
            redis.Redis(port=broker.port) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        assert (home / URLS_NAME).stat().st_mode & 0o777 == 0o600
        for lock in (LOCK_NAME, USERS_NAME):
            assert (home / lock).stat().st_mode & 0o077 == 0
        for secret in (password, broker.password):
            assert embedded.processes(secret) == []
            for log in (home / "logs").iterdir():
                assert secret not in log.read_text()
            assert secret not in repr(urls)


@used
def test_a_lost_state_file_costs_no_data(home: Path) -> None:
    with local_services(home) as urls:
        _write(urls)
    (home / URLS_NAME).unlink()
    # As after a crash: a number that is another process of this user by now.
    other = subprocess.Popen(["sleep", "infinity"], **as_servers())
    postgres = data_folder(home) / "postgres"
    (postgres / "postmaster.pid").write_text(f"{other.pid}\n{postgres}\n1\n1\n\n\n")
    with contextlib.ExitStack() as stack:
        stack.callback(other.wait)
        stack.callback(other.kill)
        urls = stack.enter_context(local_services(home))
        with psycopg.connect(urls.database_url) as session:
            assert session.execute("SELECT word FROM kept").fetchone() == ("row",)
        # Deleted while they run, it is written again.
        (home / URLS_NAME).unlink()
        _until(lambda: read_urls(home) is not None)


@used
def test_a_wrong_password_is_said_and_leaves_nothing_behind(home: Path) -> None:
    with local_services(home) as urls:
        _write(urls)
    password = urlsplit(urls.database_url).password
    assert password
    file = home / URLS_NAME
    file.write_text(file.read_text().replace(password, "0" * 32))
    with pytest.raises(LocalServiceFailed, match="refuses the password"):
        up(home)
    assert not down(home)
    assert embedded.processes(str(home)) == []
    file.unlink()
    with local_services(home) as urls, psycopg.connect(urls.database_url) as session:
        assert session.execute("SELECT word FROM kept").fetchone() == ("row",)
        # That of another program, which was quicker to take the port, is not ours.
        folders = home / "data of another" / "postgres", home / "logs"
        starting = Postgres(Path("postgres"), urls.database_url, *folders, 0)
        starting.url = _with_password(urls, "0")
        assert not starting.answers()


def test_a_network_without_loopback_is_said(home: Path) -> None:
    mapped = [] if os.geteuid() == 0 else ["--map-current-user"]
    alone = ["unshare", "--net", *mapped]
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("no network namespace can be made here")
    command = [*alone, f"{sys.prefix}/bin/marco", "up"]
    said = subprocess.run(command, env=_environment(home), capture_output=True, text=True)
    assert said.returncode == 4
    assert "127.0.0.1 can't be reached: start the loopback interface" in said.stderr
    assert embedded.processes(str(home)) == []


def test_ports_that_are_taken_meanwhile_and_a_pid_that_is_another_process(home: Path) -> None:
    with local_services(home) as urls:
        _write(urls)
    before = urlsplit(urls.database_url).port
    assert before
    # As after a crash: a word that nobody heard, a number that is another process by now.
    (home / USERS_NAME).write_text("stop")
    postgres = data_folder(home) / "postgres"
    (postgres / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres}\n1\n{before}\n\n\n")
    settings = Settings().model_copy(update={"home": home, "database_url": None, "redis_url": None})
    with pytest.raises(DatabaseUnavailable, match="marco up"):
        locations.database_url(settings)
    with pytest.raises(BrokerUnavailable, match="marco up"):
        locations.redis_url(settings)
    with socket.create_server(("127.0.0.1", before)), local_services(home) as urls:
        assert _still_there(urls)
        assert locations.database_url(settings) == urls.database_url
        assert locations.redis_url(settings) == urls.redis_url
        assert urlsplit(urls.database_url).port != before


def test_what_a_killed_supervisor_left_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(home)
    running = embedded.services(home)
    os.kill(running["postgres"].pid, signal.SIGSTOP)
    os.kill(running["supervisor"].pid, signal.SIGKILL)
    _until(lambda: not running["supervisor"].alive and not running["redis"].alive)
    monkeypatch.setattr(local, "_STOP_S", 0.5)
    with pytest.raises(LocalServiceFailed, match=rf"kill -9 .*\b{running['postgres'].pid}\b"):
        down(home)
    os.kill(running["postgres"].pid, signal.SIGCONT)
    monkeypatch.undo()
    assert down(home) is False, "and it returns when they are gone"
    assert embedded.processes(str(home)) == []


def test_what_lies_in_the_place_of_a_lock_or_the_home_is_named(home: Path) -> None:
    for lock in (USERS_NAME, LOCK_NAME):
        (home / lock).mkdir(parents=True)
        with pytest.raises(LocalServiceFailed, match=rf"{home / lock} can't be used \(Is a dir"):
            up(home)
        (home / lock).rmdir()
    link = home.with_name("link")
    link.symlink_to(home / "missing")
    with pytest.raises(LocalServiceFailed, match=r"link can't be used \(it links to nothing"):
        up(link)
    assert not down(link)
    link.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_does_not_keep_up_and_down_from_being_heard(home: Path) -> None:
    home.mkdir(0o711)
    size = "size=160m,mode=711"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(home)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with local_services(home):
            _fill(home)
            up(home)
        assert is_running(home)
        assert down(home)
        with pytest.raises(LocalServiceFailed, match=r"disk is full \(0 MiB free\)"):
            up(home)
    finally:
        down(home)
        subprocess.run(["umount", str(home)], check=True)


def _fill(home: Path) -> None:
    with contextlib.suppress(OSError), (home / "full").open("wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass
    with contextlib.suppress(OSError), (home / "full").open("ab", buffering=0) as file:
        while file.write(bytes(2**8)):
            pass


def test_a_supervisor_that_is_killed_while_it_starts_is_not_said_to_have_failed(home: Path) -> None:
    log = home / "logs" / "postgres.log"
    log.mkdir(parents=True)
    with pytest.raises(LocalServiceFailed, match="Is a directory"):
        up(home)
    log.rmdir()
    os.mkfifo(log)  # the start waits for a reader
    with ThreadPoolExecutor() as threads:
        started = threads.submit(up, home)
        _until(lambda: "supervisor" in embedded.services(home))
        os.kill(embedded.services(home)["supervisor"].pid, signal.SIGKILL)
        with pytest.raises(LocalServiceFailed, match="was killed: try again"):
            started.result()
    log.unlink()


def test_a_full_disk_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "logs" / "postgres.log").mkdir(parents=True)  # something fails
    usage = shutil.disk_usage(home)._replace(free=2**22)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LocalServiceFailed, match=r"disk is full \(4 MiB free\)"):
        up(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_as_an_ordinary_user(home: Path) -> None:
    nobody = as_servers()
    version = f"python3.{sys.version_info.minor}"
    site = Path(sysconfig.get_paths()["purelib"])
    env = {"PYTHONPATH": f"{ROOT}:{site}", "HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}

    def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT if is_open(ROOT) else "/",
            env=env,
            capture_output=True,
            text=True,
            check=False,
            **nobody,
        )

    # This Python may lie in root's home; then one of the system's may do.
    pythons = [sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"]
    pythons = [python for python in pythons if is_open(Path(python))]
    probe = "import marco_search.local.supervisor"
    pythons = [python for python in pythons if as_nobody(python, "-c", probe).returncode == 0]
    if not pythons:
        pytest.skip("an ordinary user can reach no Python of this version, or not its packages")
    home.mkdir()
    home.chmod(0o700)
    os.chown(home, nobody["user"], nobody["group"])
    code = "import sys; from pathlib import Path; from marco_search.local import local_services\n"
    code += "import psycopg\n"
    code += "with local_services(Path(sys.argv[1])) as urls:\n"
    code += "    print(psycopg.connect(urls.database_url).execute('SELECT 1').fetchone())"
    done = as_nobody(pythons[0], "-c", code, str(home))
    assert done.stdout == "(1,)\n", done.stderr
    assert {path.stat().st_uid for path in home.rglob("*")} == {nobody["user"]}

    home.chmod(0o755)
    for path in home.glob("*.lock"):
        os.chown(path, 0, 0)
    done = as_nobody(pythons[0], "-c", code, str(home))
    assert "another user" in done.stderr.splitlines()[-1]
    for path in (*home.glob("*.lock"), home / "logs" / "redis.log"):
        os.chown(path, *(nobody["user"], nobody["group"]) if path.suffix == ".lock" else (0, 0))
    done = as_nobody(pythons[0], "-c", code, str(home))
    assert "redis.log can't be used (Permission denied)" in done.stderr.splitlines()[-1]
    os.chown(home / "logs" / "supervisor.log", 0, 0)
    done = as_nobody(pythons[0], "-c", code, str(home))
    assert "supervisor.log can't be used (Permission denied)" in done.stderr.splitlines()[-1]


@used
@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders away")
def test_root_takes_nothing_from_another_user(home: Path) -> None:
    with local_services(home) as urls:
        _write(urls)
    owner, folders = as_servers(), [data_folder(home) / name for name in ("postgres", "redis")]
    for folder in folders:
        os.chown(folder, owner["user"] - 1, -1)
    with pytest.raises(LocalServiceFailed, match="Permission denied"):
        up(home)
    assert {folder.stat().st_uid for folder in folders} == {owner["user"] - 1}
    for folder in folders:
        os.chown(folder, owner["user"], -1)
    with local_services(home) as urls:
        assert _still_there(urls)
