"""The command line of `python -m services`: runs a whole system in the foreground or background, or asks it once."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client import statistics
from client.ask import ask as ask_gateway
from client.ask import conversation
from client.gateway import ClientError, connected
from client.wire import AnswerOptions, DsdOptions
from services.local import pidfile
from services.local.engine import EngineName, EngineRefused, verifier_engine
from services.local.nats_server import Access
from services.local.pair import ModelPair, PairRefused, default_pair, own_pair
from services.local.supervisor import turn_over
from services.local.system import SystemPlan, check_address, running, stop_s
from shared.runtime.config import masked
from shared.runtime.home import default_models_dir, home

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, soft_wrap=True)

UP_SPARE_S = 420.0  # for a start in the background, beyond what the verifiers may take
STOP_FILE = "services.stop_s"  # in the run folder: seconds that the running system may take to stop


@app.command()
def main(
    drafters: Annotated[int, typer.Option(min=0, max=64, help="Number of edge drafters.")] = 1,
    verifiers: Annotated[int, typer.Option(min=1, max=16, help="Number of cloud verifiers.")] = 1,
    target: Annotated[
        Path | None, typer.Option(envvar="DSD_TARGET", help="Folder of your own target; default: the default target.")
    ] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(
            help="int8 (default), int4, distilled (see `make draft`) or a folder. Repeat it to use several in turn."
        ),
    ] = None,
    model_name: Annotated[
        str, typer.Option(envvar="DSD_MODEL_NAME", help="Name of the target in the API; default: its folder's name.")
    ] = "",
    engine: Annotated[
        EngineName, typer.Option(envvar="DSD_ENGINE", help="Engine of the verifiers; vllm needs `make vllm`.")
    ] = EngineName.TORCH,
    verifier_python: Annotated[
        Path | None,
        typer.Option(envvar="DSD_VERIFIER_PYTHON", help="Python of the verifiers; default: one with the engine."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 8080,
    ask: Annotated[str, typer.Option(help="Ask this prompt, print the answer and statistics, and stop.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer to --ask.")] = 160,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure", envvar="DSD_SECURE", help="Run NATS with TLS, and with a user and a key for each process."
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; return when the system is ready.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the system that --detach started.")] = False,
) -> None:
    """Runs NATS, a window controller, verifiers, drafters and the gateway on this machine.

    The models are the default pair, which is prepared if it is missing, or your own --target and --draft. DSD_*
    variables set the services (see `python -m services.gateway --help` and the others); DSD_VLLM_ARGS has vLLM's own
    flags. With DSD_NATS_URL the system uses a running NATS server.
    """
    run_dir = home() / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        if stop:
            _stop(run_dir)
            return
        pair = _pair(target, draft or [], drafters, model_name)
        verifier = verifier_engine(engine, verifier_python)
        plan = SystemPlan(pair, verifiers, host, port, _given_nats(secure), secure, verifier)
        if detach:
            _detach(plan, run_dir)
        else:
            _prepare(pair)
            _run(plan, run_dir, ask, max_tokens)
    except (TimeoutError, OSError, ClientError, PairRefused, EngineRefused, pidfile.AlreadyRunning) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


def _pair(target: Path | None, drafts: list[str], num_drafters: int, model_name: str) -> ModelPair:
    if target is None:
        return default_pair(default_models_dir(), drafts or ["int8"], num_drafters, model_name)
    return own_pair(target, drafts, num_drafters, model_name)


def _given_nats(secure: bool) -> Access | None:
    """The running NATS server of DSD_NATS_URL, if set. It excludes --secure."""
    url = os.environ.get("DSD_NATS_URL", "")
    if url and secure:
        given = f"DSD_NATS_URL is {masked(url)}"
        raise typer.BadParameter(f"starts its own NATS server, but {given}", param_hint="--secure")
    return Access(url) if url else None


def _prepare(pair: ModelPair) -> None:
    """Makes the default models if they are missing. A separate process: services don't import the model zoo."""
    if not pair.is_default:
        return
    finished = subprocess.run([sys.executable, "-m", "model_zoo", "prepare"], check=False)
    if finished.returncode:
        raise typer.Exit(finished.returncode)


def _run(plan: SystemPlan, run_dir: Path, ask: str, max_tokens: int) -> None:
    with pidfile.held(run_dir):
        (run_dir / STOP_FILE).write_text(f"{stop_s()}\n", encoding="utf-8")
        asyncio.run(_serve(plan, run_dir, ask, max_tokens))


async def _serve(plan: SystemPlan, run_dir: Path, ask: str, max_tokens: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup: the system outlives its terminal
        loop.add_signal_handler(signal.SIGHUP, stopped.set)
    with console.status("starting") as status:
        waiting = asyncio.create_task(stopped.wait())
        serving = asyncio.create_task(_serve_until(plan, run_dir, ask, max_tokens, waiting, status.stop))
        await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            _tell("stopping")
            serving.cancel()
        waiting.cancel()
        results = await asyncio.gather(serving, waiting, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _serve_until(
    plan: SystemPlan, run_dir: Path, ask: str, max_tokens: int, stopped: asyncio.Task[bool], ready: object
) -> None:
    """Runs the system until the answer is printed (`ask`) or a signal stops the process."""
    async with running(plan, run_dir, _tell):
        ready()  # type: ignore[operator]
        pidfile.mark_ready(run_dir)
        if ask:
            await _ask(plan.address, ask, max_tokens)
            return
        print(address_lines(plan), flush=True)
        await asyncio.shield(stopped)


def _tell(text: str) -> None:
    """Prints a line for the user. The terminal may be gone, or the disk full."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno == errno.EIO:  # no terminal: else Python tries again at its end, and exits with 120
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  until the process ends


async def _ask(address: str, prompt: str, max_tokens: int) -> None:
    """Prints the greedy answer to one prompt as it streams, and then what speculation did for it."""
    options = AnswerOptions(max_tokens, temperature=0, speculation=DsdOptions("adaptive"))
    print(f"> {prompt}\n", flush=True)
    async with connected(address) as gateway:
        answer = await ask_gateway(gateway, None, conversation(prompt, None), options, sys.stdout)
    print(flush=True)
    Console().print(statistics.table(answer))


def address_lines(plan: SystemPlan) -> str:
    """The gateway's address, and a request to try."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": plan.pair.model_name, "messages": messages, "temperature": 0, "max_tokens": 64})
    return (
        f"gateway at {plan.address}\n"
        f"curl -s {shlex.quote(f'{plan.address}/v1/chat/completions')} -H 'Content-Type: application/json' -d '{body}'"
    )


def _detach(plan: SystemPlan, run_dir: Path) -> None:
    """Starts this command again in the background and waits until it is ready."""
    pidfile.check_free(run_dir)
    check_address(plan)
    _prepare(plan.pair)
    drafts = plan.pair.drafts
    argv = [sys.executable, "-m", "services", "--drafters", str(len(drafts)), "--verifiers", str(plan.num_verifiers)]
    argv += ["--engine", plan.engine.name, "--verifier-python", str(plan.engine.python)]
    argv += ["--host", plan.host, "--port", str(plan.port), "--model-name", plan.pair.model_name]
    argv += [part for draft in drafts for part in ("--draft", str(draft))]
    if not plan.pair.is_default:
        argv += ["--target", str(plan.pair.target)]
    if plan.secure:
        argv += ["--secure"]
    log_path = run_dir / "services.log"
    turn_over(log_path)
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
        )
    deadline = time.monotonic() + plan.engine.ready_s + UP_SPARE_S
    with console.status("starting"):
        while not pidfile.is_ready(run_dir, process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                console.print(f"the system did not start: see {log_path}", style="red", markup=False)
                raise typer.Exit(1)
            time.sleep(0.2)
    print(address_lines(plan))


def _stop(run_dir: Path) -> None:
    pid = pidfile.running_pid(run_dir)
    if pid is None:
        console.print("no system is running", highlight=False)
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _stop_s(run_dir)
    with console.status("stopping"):
        while pidfile.running_pid(run_dir) == pid:
            if time.monotonic() > deadline:
                console.print(f"process {pid} does not stop", style="red", markup=False)
                raise typer.Exit(1)
            time.sleep(0.1)
    console.print("stopped", highlight=False)


def _stop_s(run_dir: Path) -> float:
    """Seconds that the running system may take to stop, from its own settings: its drain may differ from ours."""
    try:
        return float((run_dir / STOP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return stop_s()
