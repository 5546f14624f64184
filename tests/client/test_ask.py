"""`dsd ask`: what goes where, and with which exit status it ends."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import gateway
from client.cli import app
from services.gateway.admission.api_keys import digest, new_key
from services.gateway.settings import GatewaySettings
from shared.protocol.messages import Open, Speculate
from tests.client.conftest import DSD, ROOT, OtherServer, address, chunk, dsd, environment, start
from tests.gateway.conftest import TOKENIZER, World, a_world, until
from tests.gateway.fakes import CONTEXT
from tests.gateway.tiny import make_folder

NOBODY = "http://127.0.0.1:1"
EVENTS_BEGIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
pytestmark = pytest.mark.timeout(60)


async def test_the_answer_goes_to_standard_output_and_its_figures_to_standard_error(world: World) -> None:
    await world.verifier()
    await world.drafter()
    done = await dsd("ask", "hello", "--seed", "7", url=address(world))
    assert (done.status, done.out) == (0, world.answer + "\n")
    for figure in ("tokens", "TTFT", "TPOT", "acceptance", "window", "tokens each", "seed        7"):
        assert figure in done.err
    assert "verifier verifier, drafter drafter" in done.err
    assert "\x1b" not in done.out + done.err
    await world.no_session_is_left()


async def test_tokens_that_the_verifier_guessed_from_the_text_are_told_apart(world: World) -> None:
    verifier = await world.verifier()
    without = await dsd("ask", "hello", "--max-tokens", "20", url=address(world))
    verifier.max_looked_up, verifier.script = 4, lambda prompt_ids: [11, 12, 13]  # again and again
    done = await dsd("ask", "hello", "--max-tokens", "20", url=address(world))
    told = json.loads((await dsd("ask", "hello", "--json", "--max-tokens", "20", url=address(world))).out)["dsd"]
    assert told["looked_up"] > 0
    assert f"looked up   {told['looked_up']} guessed by the verifier from the text" in done.err
    assert "looked up" not in without.err


async def test_the_prompt_may_come_through_a_pipe(world: World) -> None:
    verifier = await world.verifier()
    for argv in (["ask"], ["ask", "-"]):
        done = await dsd(*argv, url=address(world), stdin="from a pipe\n")
        assert (done.status, done.out) == (0, world.answer + "\n")
    typed = await dsd("ask", "from a pipe\n", url=address(world))
    assert typed.status == 0
    prompts = {tuple(opened.prompt_ids) for opened in verifier.of(Open)}
    assert len(prompts) == 1, "the same prompt each time"


async def test_json_is_one_object_with_what_the_server_told_and_nothing_else(world: World) -> None:
    await world.verifier()
    await world.drafter()
    done = await dsd("ask", "hello", "--json", "--max-tokens", "5", url=address(world))
    assert (done.status, done.err) == (0, "")
    told = json.loads(done.out)
    assert set(told) == {"text", "finish_reason", "usage", "dsd"}
    assert world.answer.startswith(told["text"])
    assert told["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 5
    assert told["dsd"]["verifier"] == "verifier"
    assert {"seed", "accepted", "window", "tokens_per_verdict"} <= set(told["dsd"])


async def test_options_reach_the_peers(world: World) -> None:
    verifier, drafter = await world.verifier(), await world.drafter("near")
    await world.drafter("far")
    options = "--temperature 0.5 --top-p 0.9 --seed 3 --max-tokens 9 --window 4 --drafter near --system Obey."
    done = await dsd("ask", "hello", *options.split(), url=address(world))
    assert done.status == 0, done.err
    (opened,) = verifier.of(Open)
    assert (opened.sampling.temperature, opened.sampling.top_p, opened.sampling.seed) == (0.5, 0.9, 3)
    assert opened.max_tokens == 9
    (speculate,) = drafter.of(Speculate)
    assert (speculate.speculation.mode, speculate.speculation.window) == ("static", 4)
    prompt = TOKENIZER.decode(list(opened.prompt_ids), skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>system\nObey.<|im_end|>")


async def test_without_speculation_nobody_drafts(world: World) -> None:
    await world.verifier()
    drafter = await world.drafter()
    done = await dsd("ask", "hello", "--speculation", "off", "--json", url=address(world))
    assert json.loads(done.out)["dsd"]["speculation"] == "off"
    assert drafter.of(Speculate) == []


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("ask ''", "prompt"),
        ("ask hi --speculation static", "--window"),
        ("ask hi --speculation adaptive --window 4", "--window"),
        ("ask hi --speculation off --drafter x", "--drafter"),
        ("ask hi --temperature 3", "--temperature"),
        ("ask hi --max-tokens 0", "--max-tokens"),
        ("chat", "terminal"),
        ("status --watch 0", "--watch"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_names_what_is_wrong(command: str, names: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command), env={"DSD_URL": NOBODY, "COLUMNS": "100", "NO_COLOR": "1"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert names in done.stderr


async def test_what_the_gateway_refuses_ends_with_status_1_and_its_words(world: World) -> None:
    await world.verifier()
    done = await dsd("ask", "hi", "--model", "wrong", url=address(world))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("dsd: ")
    assert "wrong" in done.err
    assert len(done.err.splitlines()) == 1
    done = await dsd("ask", "x" * 4 * CONTEXT, "--json", url=address(world))
    assert (done.status, done.out) == (1, "")
    assert "context" in done.err


@pytest.mark.parametrize("url", [NOBODY, "http://no-such-host.invalid", "not an address"])
async def test_where_nobody_answers_it_ends_with_status_3_and_names_the_address(url: str) -> None:
    done = await dsd("ask", "hi", url=url)
    assert (done.status, done.out) == (3, "")
    assert url in done.err
    assert len(done.err.splitlines()) == 1


async def test_the_key_is_sent_where_one_is_wanted_and_shown_nowhere(other: OtherServer) -> None:
    other.key, other.events = "s3cret", [chunk("yes"), "[DONE]"]
    assert (await dsd("ask", "hi", url=other.url, env={"DSD_API_KEY": "s3cret"})).out == "yes\n"
    refused = await dsd("ask", "hi", url=other.url, env={"DSD_API_KEY": "wr0ng"})
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == "dsd: Incorrect API key provided (status 401)\n"
    for argv in (["--help"], ["ask", "--help"]):
        assert "s3cret" not in (await dsd(*argv, url=other.url, env={"DSD_API_KEY": "s3cret"})).out


async def test_a_gateway_with_keys_is_asked_with_one(tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(f'[somebody]\nsha256 = "{digest(key).hex()}"\n')
    async with a_world(make_folder(tmp_path / "target"), api_keys_file=str(file)) as world:
        await world.verifier()
        for command in (["ask", "hi"], ["status"]):
            asked = await dsd(*command, url=address(world), env={"DSD_API_KEY": key})
            assert (asked.status, bool(asked.out)) == (0, True)
            refused = await dsd(*command, url=address(world))
            assert (refused.status, refused.out) == (1, "")
            assert "No valid API key" in refused.err


async def test_other_servers_of_the_api_are_asked_without_our_options_and_need_tell_no_figures(
    other: OtherServer,
) -> None:
    other.events = [chunk("Hel"), chunk("lo\n"), "[DONE]"]
    done = await dsd("ask", "hi", url=other.url + "/v1/")
    assert (done.status, done.out) == (0, "Hello\n")
    assert set(other.heard[0]) == {"model", "messages", "stream", "stream_options"}
    whole = await dsd("ask", "hi", "--json", url=other.url)
    assert json.loads(whole.out) == {"text": "Hello\n", "finish_reason": None, "usage": None, "dsd": None}


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([chunk("Hel")], "the connection was closed early"),
        ([chunk("Hel"), {"error": {"message": "no verifier is left"}}, "[DONE]"], "no verifier is left"),
        ([chunk("Hel"), "{nonsense"], "can't be read"),
        ([chunk("Hel"), {"choices": 7}], "can't be read"),
    ],
    ids=["end", "error", "no JSON", "other JSON"],
)
async def test_an_answer_that_breaks_off_ends_with_status_1(other: OtherServer, events: list, says: str) -> None:
    other.events = events
    done = await dsd("ask", "hi", url=other.url)
    assert (done.status, done.out) == (1, "Hel")
    assert says in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "said", "told"),
    [
        ("ask hi --model m", b"", "is connected, but sent no answer in 0.2 s"),
        ("ask hi --model m", EVENTS_BEGIN + b'data: {"choices": []}\n\n', "broke off: no data for 0.2 s"),
        ("status", b"", "is connected, but sent no answer in 0.3 s"),
    ],
    ids=["no answer", "no end", "no fleet"],
)
async def test_a_server_that_falls_silent_is_not_told_as_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, argv: str, said: bytes, told: str
) -> None:
    monkeypatch.setattr(gateway, "SILENCE_S", 0.2)
    monkeypatch.setattr(gateway, "GET_SILENCE_S", 0.3)
    taken: list[asyncio.StreamWriter] = []

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        taken.append(writer)

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        env = environment(DSD_URL=f"http://127.0.0.1:{port}")
        done = await asyncio.to_thread(CliRunner().invoke, app, shlex.split(argv), env=env)
        for writer in taken:
            writer.close()
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in done.stderr
    assert "connect to" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_answer_is_awaited_longer_than_a_gateway_works_on_it() -> None:
    gives_up_s = GatewaySettings.model_fields["request_timeout_s"].default
    assert gives_up_s < gateway.SILENCE_S


@pytest.mark.parametrize(
    ("argv", "stdin", "names"),
    [
        (["ask", "caf\udce9"], "", "PROMPT"),
        (["ask"], "caf\udce9", "PROMPT"),
        (["ask", "hi", "--system", "caf\udce9"], "", "--system"),
        (["ask", "hi", "--model", "caf\udce9"], "", "--model"),
        (["ask", "hi", "--drafter", "caf\udce9"], "", "--drafter"),
    ],
    ids=["argument", "pipe", "system", "model", "drafter"],
)
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
async def test_text_that_is_not_utf_8_is_wrong_usage(argv: list[str], stdin: str, names: str, locale: str) -> None:
    done = await dsd(*argv, url=NOBODY, stdin=stdin, env={"LC_ALL": locale})
    assert (done.status, done.out) == (2, "")
    assert names in done.err
    assert "the text is not UTF-8" in done.err
    assert "Traceback" not in done.err


async def first_output(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return await process.stdout.read(1)


async def test_ctrl_c_ends_it_with_status_130_and_closes_the_session(world: World) -> None:
    verifier = await world.verifier(pass_s=0.05)
    world.answer = "word " * 300
    process = await start("ask", "hello", url=address(world))
    await first_output(process)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    await world.no_session_is_left()
    assert verifier.num_cut_short == 1


async def test_a_reader_that_has_enough_ends_it_quietly_and_closes_the_session(world: World) -> None:
    verifier = await world.verifier(pass_s=0.02)
    world.answer = "word " * 300
    command = f"{DSD[0]} -m client ask hello | head -c 4"
    shell = await asyncio.create_subprocess_shell(
        command, cwd=ROOT, env=environment(DSD_URL=address(world)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, err = await shell.communicate()
    assert (out, err) == (b"word", b"")
    await until(lambda: verifier.num_cut_short == 1)
    await world.no_session_is_left()
