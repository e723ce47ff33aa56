"""The command line as its users meet it: documents on stdout, sentences on stderr, exit codes."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import polyrhythm as pr
from planner.errors import (
    Infeasible,
    InputError,
    NotANumber,
    PlanError,
    RankFailed,
    RanksDisagree,
    RankStalled,
)
from planner.profile import Profile
from planner.timeline import Timeline
from planner.trace import MessageSample, PartSample, Trace
from polyrhythm import api, render
from polyrhythm.cli import app
from polyrhythm.cli_flags import scheme

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["catalog", "doctor", "measure", "import", "fit", "plan", "explain", "simulate", "run", "replay", "compare", "demo"]
COMMANDS += ["sweep", "serve", "recommend"]
TWO = ["--devices", "rtx-5090,rtx-3090", "--link", "pcie4-x16", "--model", "shapes-unet", "--steps", "6"]


def pr_run(*words, code=0):
    """Perform a command in this process; its result, whose exit code must be `code`."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="polyrhythm")
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr[-500:])
    return result


def document(*words, code=0):
    """The one JSON document on stdout."""
    found = json.loads(pr_run(*words, "--json", code=code).stdout)
    assert found["schema_version"] == 1
    return found


def started(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "polyrhythm", *map(str, words)], capture_output=True, text=True, cwd=ROOT, **options
    )


# Start-up.


def test_help_takes_little_time_and_imports_little():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = started("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.returncode == 0 and all(command in done.stdout for command in COMMANDS)
    assert min(seconds) < 0.3  # of processor time: the wall clock belongs to whoever else computes here


def test_nothing_heavy_is_imported_before_a_command_runs():
    code = "import sys, polyrhythm.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "diffusers", "numpy", "scipy", "pandas", "pydantic", "simpy", "networkx", "matplotlib", "rich"}
    assert heavy & {name.split(".")[0] for name in done.stdout.split()} == set()


def test_planning_imports_no_torch():
    code = f"import sys; sys.argv = ['p', 'plan', *{TWO!r}]; from polyrhythm.cli import main\n"
    code += "try: main()\nexcept SystemExit as e: print('torch' in sys.modules, e.code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith("False 0\n")


def test_every_result_has_a_home_that_shows_it():
    assert all(callable(getattr(import_module(home), kind.lower())) for kind, home in render._HOME.items())


def test_version():
    assert re.fullmatch(r"polyrhythm \S+\n", pr_run("--version").stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_traceback(command):
    text = pr_run(command, "--help").stdout
    assert "--json" in text and "--traceback" in text


def test_every_knob_of_every_scheme_is_a_flag():
    import inspect

    flags = set(inspect.signature(scheme).parameters) - {"scheme"}
    assert {knob for name in pr.SCHEMES for knob in api.knobs_of(name)} == flags


# plan, explain, simulate.


def test_plan_json_keeps_the_promise():
    found = document("plan", *TWO, "--scheme", "distrifusion", "--warmup", 2, "--rows", "44,20")
    assert found["phases"] and found["scheme"] == "distrifusion" and found["devices"] == ["rtx-5090", "rtx-3090"]
    assert found["predicted_seconds"] > 0
    assert found["provenance"]["seconds"] == "datasheet"
    volume = found["volume"]
    assert set(volume) == {"steady_step_received_bytes", "received_bytes", "total_bytes"}
    assert len(volume["steady_step_received_bytes"]) == len(volume["received_bytes"]) == 2
    assert volume["total_bytes"] == sum(volume["received_bytes"])


def test_simulate_json_keeps_the_promise(tmp_path):
    pr_run("plan", *TWO, "--scheme", "cfg", "-o", tmp_path / "plan.json")
    found = document("simulate", tmp_path / "plan.json")
    assert {"latency_seconds", "plan_digest", "devices", "provenance"} <= set(found)
    keys = {"name", "busy_seconds", "waiting_seconds", "sent_bytes", "received_bytes", "peak_memory_bytes"}
    assert [set(device) for device in found["devices"]] == [keys] * 2
    assert found["latency_seconds"] == document("plan", *TWO, "--scheme", "cfg")["predicted_seconds"]
    assert found["plan_digest"] == pr.load_planned(tmp_path / "plan.json").plan.digest
    assert found == document("simulate", *TWO, "--scheme", "cfg")


def test_plan_is_written_and_shown_as_a_grid(tmp_path):
    result = pr_run("plan", *TWO, "--scheme", "distrifusion", "-o", tmp_path / "plan.json")
    assert "warm-up: 5 x beat" in result.stdout and "auto" not in result.stdout
    assert result.stderr == f"wrote {tmp_path / 'plan.json'}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ("bytes_per_second = 1e-300\nlatency_seconds = 0", "10:1 links[0].bytes_per_second: should be greater than or equal to 1"),
        ("bytes_per_second = 1e9\nlatency_seconds = 1e300", "11:1 links[0].latency_seconds: should be less than or equal to"),
    ],
)
def test_a_link_that_takes_for_ever_is_none(numbers, said, tmp_path):
    text = "".join(f'[[devices]]\nname = "{name}"\nbase = "rtx-3090"\n' for name in "ab")
    (tmp_path / "c.toml").write_text(f'{text}[[links]]\nbetween = ["a", "b"]\nkind = "string"\n{numbers}\n')
    assert said in document("plan", "--cluster", tmp_path / "c.toml", "--model", "sdxl", code=3)["error"]["message"]


def test_what_does_not_fit_is_no_plan_but_may_be_simulated(tmp_path):
    flux = ["--model", "flux-dev", "--steps", "2"]
    message = document("plan", "--devices", "rtx-3090", *flux, "--scheme", "single", code=4)["error"]["message"]
    short = "rtx-3090 needs about 24.1 GB and has 23.7 GB to give"
    assert message == f"single: {short}; give a smaller image or batch"
    assert f"(single: {short})" in document("plan", "--devices", "rtx-3090", *flux, code=4)["error"]["message"]
    pr_run("plan", "--devices", "rtx-5090", *flux, "--scheme", "single", "-o", tmp_path / "plan.json")
    assert "shortage" not in document("simulate", tmp_path / "plan.json")
    smaller = ["--cluster", tmp_path / "small.toml"]
    (tmp_path / "small.toml").write_text('[[devices]]\nname = "rtx-5090"\nbase = "rtx-3090"\n')
    short = short.replace("rtx-3090", "rtx-5090")
    assert document("simulate", tmp_path / "plan.json", *smaller)["shortage"] == short
    assert f"does not fit in the memory of its devices: {short}" in pr_run("simulate", tmp_path / "plan.json", *smaller).stderr
    (tmp_path / "grid.toml").write_text(
        '[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "flux-dev"\n[[scheme]]\nname = "single"\n'
    )
    (row,) = document("sweep", tmp_path / "grid.toml", "-o", tmp_path / "r.csv", "--processes", 1)["rows"]
    assert (row["status"], row["reason"]) == ("infeasible", message)


def test_a_plan_needs_all_of_its_devices(tmp_path):
    pr_run("plan", *TWO, "--scheme", "cfg", "-o", tmp_path / "plan.json")
    told = pr_run("simulate", tmp_path / "plan.json", "--devices", "rtx-5090", code=3).stderr
    assert "is a plan for rtx-5090, rtx-3090, but the cluster has rtx-5090; give it rtx-3090 too" in told
    told = pr_run("simulate", tmp_path / "plan.json", "--link", "pcie4-x16", code=2).stderr
    assert "--link goes with --devices; give those too" in told


def test_auto_is_labelled():
    told = pr_run("plan", *TWO).stdout
    assert "auto: the fastest of these by simulation" in told and "distrifusion" in told


def test_plan_by_a_cluster_file(tmp_path):
    file = tmp_path / "two.toml"
    file.write_text(
        'link = "pcie4-x16"\n[[devices]]\nname = "a"\nbase = "rtx-5090"\n[[devices]]\nname = "b"\nbase = "t4"\n'
    )
    assert document("plan", "--cluster", file, "--model", "shapes-unet", "--steps", 6)["devices"]


def test_plan_is_the_same_every_time():
    assert pr_run("plan", *TWO, "--json").stdout == pr_run("plan", *TWO, "--json").stdout


def test_simulate_writes_timelines_that_compare_reads(tmp_path):
    a, b, c = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    pr_run("simulate", *TWO, "--scheme", "cfg", "--timeline", a, "--chrome", c)
    assert json.loads(c.read_text())["traceEvents"]
    pr_run("simulate", *TWO, "--scheme", "cfg", "--occupancy", "0.5,0.5", "--timeline", b)
    assert document("compare", a, a, "--fail-above", 0)["error"] == 0
    found = document("compare", a, b)
    assert found["predicted_seconds"] < found["measured_seconds"] and found["error"] < 0
    assert document("compare", a, b, "--fail-above", 5, code=9) == found
    assert "where they differ most" in pr_run("compare", a, b).stdout


def test_explain(tmp_path):
    found = document("explain", *TWO, "--scheme", "distrifusion")
    assert {alternative["scheme"] for alternative in found["alternatives"]} == set(pr.SCHEMES)
    assert {"limit", "ranks", "perfect_split_seconds", "free_transfers_seconds"} <= set(found)
    pr_run("plan", *TWO, "--scheme", "distrifusion", "-o", tmp_path / "plan.json")
    assert document("explain", tmp_path / "plan.json") == found
    assert "limited by" in pr_run("explain", tmp_path / "plan.json").stdout


# Other commands.


def test_catalog():
    assert {entry["name"] for entry in document("catalog", "schemes")["schemes"]} == set(pr.SCHEMES)
    assert "rtx-3090" in pr_run("catalog").stdout
    assert "confidence" in pr_run("catalog", "devices", "rtx-3090").stdout


def test_doctor_says_what_it_found(monkeypatch):
    from polyrhythm import health

    monkeypatch.setattr(health, "_torch", lambda driver: iter([health.Check("gloo", "ok", "")]))
    names = {check["name"] for check in document("doctor")["checks"]}
    assert {"python", "cores", "memory", "no orphans", "free port", "torch", "diffusers"} <= names
    bad = health.Health((health.Check("free port", "fail", "none", "make room"),))
    monkeypatch.setattr(health, "examine", lambda: bad)
    assert "make room" in pr_run("doctor", code=4).stdout
    assert document("doctor", code=4)["fit"] is False


def trace():
    """Two devices and a link, timed at four sizes each; costs are straight lines."""
    stops = len(pr.load_model("shapes-unet").parts)
    parts = [
        PartSample(kind, "shapes-unet", 64, 64, "float32", batch, rows, i, tuple([slow * batch * rows * 1e-5] * stops))
        for kind, slow in (("cpu@1", 1), ("cpu@0.5", 2))
        for batch in (1, 2)
        for rows in (4, 16, 32, 64)
        for i in range(3)
    ]
    messages = [
        MessageSample("gloo", 2, n, i, 1e-5, 1e-4 + n * 1e-9, 1e-5) for n in (64, 10**4, 10**6) for i in range(3)
    ]
    return Trace({"date": "today"}, tuple(parts), tuple(messages))


def test_from_trace_to_profile_to_plan(tmp_path):
    pr.save_trace(tmp_path / "trace", trace())
    found = document("fit", tmp_path / "trace", "-o", tmp_path / "profile.json")
    assert found["path"] == str(tmp_path / "profile.json") and len(found["tables"]) == 5
    assert all(row["error"] < 1e-6 for row in found["tables"])
    assert "held-out error" in pr_run("fit", tmp_path / "trace").stdout
    cpus = ["--devices", "cpu:1,cpu:0.5", "--model", "shapes-unet", "--steps", 6]
    planned = document("plan", *cpus, "--profile", tmp_path / "profile.json", "--scheme", "cfg")
    assert planned["provenance"]["seconds"] in {"measured", "interpolated", "extrapolated"}


@dataclass
class Ran:
    timeline: Timeline
    seconds: tuple = (0.25,)
    output: str | None = "x.png"
    foreign_load: float = 0.0
    performed: object = None


@pytest.fixture
def local(monkeypatch):
    """`polyrhythm.local` that starts no processes and keeps what it is asked for."""
    fake = ModuleType("polyrhythm.local")
    fake.asked = []

    def run(plan, model, cluster, **what):
        fake.asked.append((plan, model, cluster, what))
        return Ran(Timeline("measured", plan.digest, plan.devices, []))

    def measure(cluster, model, description, job, rows=None, nbytes=None, **options):
        fake.asked.append((cluster, model, description, job, rows))
        options["progress"]("timing")
        return trace(), Profile()

    fake.run, fake.measure, fake.model_directory = run, measure, lambda name: f"/models/{name}"
    monkeypatch.setitem(sys.modules, "polyrhythm.local", fake)
    monkeypatch.setattr(pr, "local", fake, raising=False)
    return fake


CPUS = ["--devices", "cpu:1,cpu:0.5", "--model", "shapes-unet", "--steps", "6"]


def test_run_by_flags_or_by_file(local, tmp_path):
    found = document(
        "run", *CPUS, "--scheme", "cfg", "--prompt", "red star", "-o", "x.png", "--timeline", tmp_path / "t.json"
    )
    assert {"latency_seconds", "plan_digest", "devices", "provenance", "output"} <= set(found)
    assert pr.load_timeline(tmp_path / "t.json").source == "measured"
    gpus = ["--devices", "rtx-3090*2", "--model", "shapes-unet", "--scheme", "cfg"]
    pr_run("plan", *gpus, "-o", tmp_path / "plan.json")
    more = ["--call", "eta=0.5", "--call", "clip_skip=two"]
    pr_run(
        "run", tmp_path / "plan.json", "--model", "elsewhere", "--embeds", "e.safetensors", "--backend", "nccl", *more
    )
    (first, where, cluster, what), (second, there, *_, how) = local.asked
    assert first.scheme == second.scheme == "cfg"
    assert where == "/models/shapes-unet" and there == "/models/elsewhere"
    assert [device.kind for device in cluster.devices] == ["cpu@1", "cpu@0.5"]
    assert what["prompt"] == "red star" and what["output"] == "x.png" and what["expected_seconds"] is None
    assert how["embeds"] == "e.safetensors" and how["backend"] == "nccl"
    assert what["call"] == {} and how["call"] == {"eta": 0.5, "clip_skip": "two"}


def test_measure_writes_a_trace_that_fit_reads(local, tmp_path):
    found = document("measure", *CPUS, "--rows", "4,16", "-o", tmp_path / "trace")
    assert found["part_samples"] == 48 and found["path"] == str(tmp_path / "trace")
    assert local.asked[0][-1] == (4, 16)
    assert (tmp_path / "trace" / "nominal.json").is_file()
    assert document("fit", tmp_path / "trace")["tables"]


@pytest.mark.parametrize(
    "words",
    [
        ["--prompt", "a", "--embeds", "b"],
        [],
        ["--prompt", "a", "-o", "x.jpg"],
        ["--prompt", "a", "--trace-latents", "-o", "x.png"],
        ["--prompt", "a", "--repeats", "0"],
        ["--prompt", "a", "--backend", "mpi"],
        ["--prompt", "a", "--call", "eta"],
    ],
)
def test_run_is_used_rightly(local, words):
    pr_run("run", *CPUS, "--scheme", "cfg", *words, code=2)
    assert not local.asked


# What goes wrong.

USAGE = [
    (["plann"], "plan"),
    (["plan", "--modle", "sdxl"], "--model"),
    (["plan", *TWO, "--steps", "many"], "--steps"),
    (["plan", *TWO, "--scheme", "cfg", "--warmup", "2"], "takes no knobs"),
    (["plan", *TWO, "--scheme", "distrifusion", "--strides", "1,2"], "warmup"),
    (["plan", *TWO, "--rows", "20,x"], "--rows"),
    (["plan", *TWO, "--thresholds", "nan,nan"], "--thresholds"),
    (["plan", "--model", "sdxl"], "--devices"),
    (["plan", "--devices", "t4"], "--model"),
    (["plan", *TWO, "--cluster", "c.toml"], "--cluster"),
    (["plan", "--link", "pcie4-x16", "--model", "sdxl"], "--devices"),
    (["simulate", "plan.json", "--steps", "3"], "--steps"),
    (["explain", "plan.json", "--equal-weights"], "--equal-weights"),
    (["measure", *CPUS], "--output"),
    (["compare", "a.json"], "MEASURED"),
]
BAD_INPUT = [
    (["plan", *TWO, "--scheme", "stady"], "did you mean 'stadi'"),
    (["plan", "--devices", "rtx-309", "--model", "sdxl"], "did you mean 'rtx-3090'"),
    (["plan", "--devices", "t4*2", "--link", "pcie4-x61", "--model", "sdxl"], "did you mean 'pcie4-x16'"),
    (["plan", "--devices", "t4", "--model", "sdxxl"], "did you mean 'sdxl'"),
    (["plan", *TWO, "--height", "100"], "multiple of 8"),
    (["plan", *TWO, "--sampler", "heun"], "ddim"),
    (["plan", *TWO, "--scheme", "distrifusion", "--mode", "fast"], "full_sync"),
    (["plan", *CPUS], "polyrhythm measure"),
    (["plan", *TWO, "--profile", "no-such.json"], "no-such.json"),
    (["simulate", "no-such.json"], "no-such.json"),
    (["fit", "no-such-dir"], "polyrhythm measure"),
    (["compare", "no-such.json", "no-such.json"], "no-such.json"),
    (["catalog", "device"], "did you mean 'devices'"),
    (["plan", *TWO, "-o", "/dev/null/plan.json"], "cannot write"),
]
INFEASIBLE = [
    (["plan", "--devices", "t4", "--model", "shapes-unet", "--scheme", "cfg"], "2 devices"),
    (["plan", *TWO, "--scheme", "cfg", "--guidance", "1"], "guidance"),
    (["plan", *TWO, "--scheme", "stadi", "--split", "2,2"], "4 devices"),
]
WRONG = [(words, hint, code) for code, cases in ((2, USAGE), (3, BAD_INPUT), (4, INFEASIBLE)) for words, hint in cases]


@pytest.mark.parametrize(("words", "hint", "code"), WRONG, ids=[" ".join(words)[:50] for words, _, _ in WRONG])
def test_what_is_wrong_is_one_sentence_and_a_code(words, hint, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = pr_run(*words, code=code)
    assert told.stdout == "" and told.stderr.startswith("polyrhythm: ") and "Traceback" not in told.stderr
    assert hint in told.stderr
    error = document(*words, code=code)["error"]
    assert error["exit_code"] == code and hint in error["message"]
    assert not list(tmp_path.iterdir())


def test_errors_in_files_have_a_place(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text('[[devices]]\nname = "a"\nbase = "rtx-309"\n')
    assert f"{bad}:3:" in pr_run("plan", "--cluster", bad, "--model", "sdxl", code=3).stderr
    bad.with_suffix(".json").write_text('{"schema_version": 1,\n "scheme": }')
    assert f"{bad.with_suffix('.json')}:2:" in pr_run("simulate", bad.with_suffix(".json"), code=3).stderr


ERRORS = [InputError, Infeasible, PlanError, RankFailed, RankStalled, RanksDisagree, NotANumber]
CODES = [3, 4, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("error", "code"), [*zip(ERRORS, CODES, strict=True), (RuntimeError, 1), (KeyboardInterrupt, 130), (MemoryError, 1)]
)
def test_every_error_has_its_exit_code(error, code, monkeypatch):
    def fail():
        raise error("rank 1 did it")

    monkeypatch.setattr(api, "doctor", fail)
    told = pr_run("doctor", code=code).stderr
    assert told.startswith("polyrhythm: ") and told.count("\n") == 1
    assert document("doctor", code=code)["error"]["exit_code"] == code


def test_traceback_only_when_asked_for():
    words = ["plan", *TWO, "--scheme", "stady"]
    assert "Traceback" not in pr_run(*words, code=3).stderr
    assert "Traceback" in pr_run(*words, "--traceback", code=3).stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "polyrhythm", "catalog"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_told():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "polyrhythm", "catalog", "links", "--json"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 3 and done.stderr == "polyrhythm: cannot write the result: No space left on device\n"


def test_no_colours_where_nobody_sees_them():
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    assert "\x1b" not in started("catalog", "links", env=plain).stdout
    coloured = started("plan", *TWO, "--scheme", "cfg", env=plain | {"NO_COLOR": "1", "FORCE_COLOR": "1"}).stdout
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|38|48)", coloured)


FLAGS = st.sampled_from(
    [
        *(["--scheme", name] for name in ("single", "cfg", "distrifusion", "stadi", "auto", "")),
        *(["--rows", rows] for rows in ("44,20", "64", "0,64", "-4,68", "", ",", "1e3,2")),
        *(["--strides", strides] for strides in ("1,2", "2,2", "1,4", "0,1", "1,1,1")),
        *(["--split", split] for split in ("1,1", "2", "0,2")),
        *(["--warmup", n] for n in ("0", "3", "99", "-1")),
        *(["--guidance", n] for n in ("1", "7.5", "nan", "-3")),
        *(["--steps", n] for n in ("1", "2", "0", "7")),
        *(["--height", n] for n in ("64", "8", "-8", "100")),
        *(["--occupancy", shares] for shares in ("0,0.5", "1,0", "nan,0", "0")),
        *(["--batch", n] for n in ("2", "0")),
        *([flag] for flag in ("--no-temporal", "--no-spatial", "--no-exclude", "--equal-weights", "--bessel")),
        ["--thresholds", "0.75,0.25"],
        ["--allowed", "1,3"],
        ["--allowed", "2"],
        ["--bundle", "0"],
        ["--device", "t4"],
        ["--mode", "no_sync"],
        ["--dtype", "bfloat16"],
        ["--seed", "-1"],
    ]
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(FLAGS, max_size=5))
def test_no_mix_of_flags_is_our_bug(flags):
    words = [word for flag in flags for word in flag]
    result = CliRunner().invoke(app, ["plan", *TWO, *words, "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code in {0, 2, 3, 4}, (words, result.stderr)
    assert ("error" in found) == (result.exit_code != 0)
    assert result.exit_code != 0 or found["predicted_seconds"] > 0


def test_demo_json_keeps_the_promise(monkeypatch):
    from polyrhythm import demo as home

    asked = []

    def walk(*models, progress, **options):
        asked.append((models, options))
        progress("timing")
        row = home.Row("shapes-unet", "cfg", 1.0, 1.1, -0.09, None, 8, 8, 0.0, (64, 64), (1, 1), (0.9, 1.2), "interpolated")
        return home.Demo((row,), {}, {}, ("demo-out/report.html",), 2.0)

    monkeypatch.setattr(home, "demo", walk)
    (row,) = document("demo", "--quick", "--speeds", "1,0.25", "--model", "shapes-unet")["rows"]
    assert {"scheme", "predicted_seconds", "measured_seconds", "psnr_db", "planned_bytes", "moved_bytes"} <= set(row)
    assert asked[0][0] == (("shapes-unet",),) and asked[0][1]["speeds"] == (1.0, 0.25)
    told = pr_run("demo")
    assert "report.html" in told.stdout and told.stderr == "timing\n"


def test_simulate_under_conditions(tmp_path):
    (tmp_path / "c.toml").write_text(
        '[noise]\ncompute = 0.05\n[[fault]]\non = "rtx-3090"\nkind = "dies"\nat_seconds = 1.5\n'
    )
    words = ["--devices", "rtx-5090,rtx-3090", "--link", "pcie4-x16", "--model", "sdxl", "--scheme", "stadi"]
    words += ["--conditions", str(tmp_path / "c.toml"), "--seed", "3"]
    found = document("simulate", *words, "--survive", "--runs", "4")
    assert found["failures"][0]["cause"] == "rtx-3090 dies at 1.5 s"
    assert found["failures"][0]["went_on_with"]["devices"] == ["rtx-5090"]
    assert found["failures"][0]["went_on_at_seconds"] == 2.5
    left, dead = found["devices"]
    assert (left["name"], dead["name"]) == ("rtx-5090", "rtx-3090")
    assert left["busy_seconds"] + left["waiting_seconds"] == pytest.approx(found["latency_seconds"], rel=0.01)
    assert dead["busy_seconds"] + dead["waiting_seconds"] == pytest.approx(1.5, abs=0.1)
    assert dead["received_bytes"] > 0 and left["received_bytes"] > 0
    assert (found["runs"]["count"], found["runs"]["seed"]) == (4, 3)
    assert found == document("simulate", *words, "--survive", "--runs", "4")
    shown = pr_run("simulate", *words, "--survive", "--runs", "4").stdout
    assert "95 % interval" in shown and found["events_digest"][:12] in shown
    failed = pr_run("simulate", *words, code=5)
    assert "rtx-3090 dies at 1.5 s: rank 1" in failed.stderr
