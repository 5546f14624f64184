"""lm-evaluation-harness plays local tasks by local-completions. argv: URL, model, tokenizer, folder of the tasks.

`capitals` reads logprobs of choices (echo), `prose` those of whole texts, `counting` what is generated.
"""

import json
import subprocess
import sys
from pathlib import Path

TASKS = ("capitals", "prose", "counting")


def main(url: str, model: str, tokenizer: str, tasks: str) -> None:
    out = Path("out").absolute()
    arguments = {"model": model, "base_url": f"{url}/v1/completions", "tokenizer": tokenizer, "num_concurrent": 2}
    command = [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--tasks", ",".join(TASKS), "--include_path", tasks, "--output_path", str(out), "--log_samples"]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=tasks)
    (report,) = out.rglob("results_*.json")
    results = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert set(results) == set(TASKS), results
    figures = {
        task: {name.partition(",")[0]: value for name, value in told.items() if isinstance(value, float)}
        for task, told in results.items()
    }
    (samples,) = out.rglob("samples_capitals_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    choices = [[float(value) for value, _ in (each[0] for each in line["resps"])] for line in lines]
    print(json.dumps({"figures": figures, "logprobs": choices}))


if __name__ == "__main__":
    main(*sys.argv[1:])
