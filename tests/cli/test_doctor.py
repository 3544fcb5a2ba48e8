"""`nenya doctor`: what machines with and without GPUs are told, from made-up facts; what is collected; exit codes."""

import http.server
import json
import socket
import stat
import sys
import threading
from importlib import resources

import pytest
from msgspec.structs import replace

from engines.exl2.memory import GIB
from engines.gpus import Gpu, NoAnswer
from router.cli import doctor, doctor_facts, main
from router.cli.doctor_facts import Extension, Facts, Port, Tool, Torch, collect
from router.cli.doctor_rules import Need, judge, meets, numbers
from tests.engines.folders import CONFIG, exl2, folder

REQUIREMENTS = (
    "aiohttp<3.15,>=3.14.5",
    "uvloop>=0.21; sys_platform != 'win32'",
    "xllamacpp>=2026.10; extra == 'llamacpp'",
    "llguidance>=1.7; extra == 'exllamav2'",
    "ninja>=1.11; extra == 'exllamav2'",
    "tokenizers>=0.21; extra == 'exllamav2'",
    'torch>=2.6; extra == "exllamav2"',
)
VERSIONS = {
    "nenya": "0.1.0", "aiohttp": "3.14.5", "uvloop": "0.23.0", "xllamacpp": "2026.10.11549", "torch": "2.9.1+cu128",
    "exllamav2": "0.3.2", "llguidance": "1.9.1", "tokenizers": "0.23.3",
}  # fmt: skip
TORCH = Torch(
    version="2.9.1+cu128", cuda="12.8", available=True, arches=("sm_80", "sm_86", "sm_90", "compute_90"),
    extensions={
        "exllamav2": Extension(built="/ext/exllamav2_ext.so"), "exllamav3": Extension(built="/ext/exllamav3_ext.so"),
    },
)  # fmt: skip
GPU = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, "570.124.06", "9.0")
PORTS = (Port("--listen", "127.0.0.1:8080"), Port("--admin", "127.0.0.1:9090"))
GOOD = Facts(
    python=(3, 11, 7), executable="/venv/bin/python", requirements=REQUIREMENTS, versions=VERSIONS,
    open_files=65_536, ports=PORTS, gpus=(GPU,), driver_cuda="12.8", cuda_home="/usr/local/cuda",
    nvcc=Tool("/usr/local/cuda/bin/nvcc", "12.8"), compiler=Tool("/usr/bin/c++", "12.2.0"),
    ninja=Tool("/venv/bin/ninja", "1.11.1"), torch=TORCH,
)  # fmt: skip
GPU_NEED = Need(kinds=frozenset({"exllamav2"}), gpus=frozenset({0}))


def lines(facts, need=GPU_NEED):
    return list(judge(facts, need))


def line(facts, name, need=GPU_NEED):
    (found,) = [one for one in lines(facts, need) if one.name == name]
    return found


def without(*names):
    return replace(GOOD, versions={k: v for k, v in VERSIONS.items() if k not in names})


def test_a_good_machine():
    found = lines(GOOD)
    assert {one.state for one in found} == {"ok"}
    assert not any(one.fix for one in found)
    assert [one.name for one in found] == [
        "Python", "nenya", "core packages", "open files", "port 127.0.0.1:8080", "port 127.0.0.1:9090", "GPU", "torch",
        "nvcc", "C++ compiler", "ninja", "exllamav2", "exllamav2 kernels", "GPU packages", "flash-attn",
    ]  # fmt: skip
    assert line(GOOD, "GPU").detail == (
        "0 NVIDIA H200 (139.0 of 140.0 GiB free); driver 570.124.06, for CUDA up to 12.8"
    )


def test_compiled_kernels_need_no_compiler():
    facts = replace(GOOD, compiled=frozenset({"exllamav2"}), nvcc=None, compiler=None, ninja=None)
    assert line(facts, "exllamav2 kernels").detail == "compiled, at /ext/exllamav2_ext.so"
    assert {one.state for one in lines(facts)} == {"ok"}
    assert "nvcc" not in [one.name for one in lines(facts)]
    installed = replace(TORCH, extensions={"exllamav2": Extension(installed=True)})
    facts = replace(facts, torch=installed)
    assert line(facts, "exllamav2 kernels").detail == "compiled, installed"
    both = replace(GPU_NEED, kinds=frozenset({"exllamav2", "exllamav3"}))
    assert line(facts, "nvcc", both).state == "wrong"


@pytest.mark.parametrize(
    ("facts", "name", "state", "detail", "fix"),
    [
        (replace(GOOD, python=(3, 10, 2)), "Python", "wrong", "3.10.2 at ", "install Python 3.11"),
        (without("nenya"), "nenya", "missing", "runs from a folder", "pip install -e ."),
        (without("aiohttp"), "core packages", "missing", "aiohttp not installed", "pip install --upgrade nenya"),
        (replace(GOOD, versions=VERSIONS | {"aiohttp": "3.15.0"}), "core packages", "wrong",
         "aiohttp 3.15.0, and <3.15,>=3.14.5 is required", "pip install --upgrade nenya"),
        (replace(GOOD, open_files=1024), "open files", "wrong", "1024 for up to 10000", "ulimit -n 65536"),
        (replace(GOOD, gpus=None), "GPU", "missing", "there is no nvidia-smi", "install NVIDIA's driver"),
        (replace(GOOD, gpus=()), "GPU", "missing", "the driver sees no GPU", "--gpus all"),
        (replace(GOOD, gpus=(), gpu_error="nvidia-smi says: mismatch"), "GPU", "wrong", "says: mismatch", "restart"),
        (replace(GOOD, gpus=(replace(GPU, index=1),)), "GPU", "wrong", "the config names GPU 0",
         "set `gpus` to what there is: 1"),
        (without("torch"), "torch", "missing", "not installed", "docs/exllamav2.md"),
        (replace(GOOD, versions=VERSIONS | {"torch": "2.5.1"}), "torch", "wrong", "2.5.1, and >=2.6 is required",
         "--upgrade torch"),
        (replace(GOOD, torch=None, torch_error="ImportError: libcudart"), "torch", "wrong",
         "can't be imported: ImportError: libcudart", "--force-reinstall"),
        (replace(GOOD, torch=replace(TORCH, cuda="")), "torch", "wrong", "built for CPUs alone", "built for CUDA"),
        (replace(GOOD, torch=replace(TORCH, cuda="", hip="6.4")), "torch", "wrong", "built for ROCm alone",
         "built for CUDA"),
        (replace(GOOD, torch=replace(TORCH, cuda="13.0", available=False)), "torch", "wrong",
         "built for CUDA 13.0, the driver knows 12.8", "a torch built for CUDA 12"),
        (replace(GOOD, torch=replace(TORCH, available=False, error="no device")), "torch", "wrong",
         "sees no GPU: no device", "the line about the GPU"),
        (replace(GOOD, gpus=(replace(GPU, capability="12.0"),), torch=replace(TORCH, arches=("sm_80", "sm_90"))),
         "torch", "wrong", "has no kernels for NVIDIA H200 (capability 12.0)", "take a newer torch"),
        (replace(GOOD, nvcc=None), "nvcc", "wrong", "not in /usr/local/cuda, which CUDA_HOME names", "set CUDA_HOME"),
        (replace(GOOD, nvcc=None, cuda_home=""), "nvcc", "missing", "not found", "install the CUDA toolkit 12.8; set"),
        (replace(GOOD, nvcc=Tool("/nvcc", "13.0")), "nvcc", "wrong", "torch is built for CUDA 12.8", "toolkit 12.8"),
        (replace(GOOD, gpus=(replace(GPU, capability="12.0"),), nvcc=Tool("/nvcc", "12.4")), "nvcc", "wrong",
         "12.4 at /nvcc doesn't know NVIDIA H200", "12.8 or newer"),
        (replace(GOOD, compiler=None), "C++ compiler", "missing", "not found", "apt install g++"),
        (replace(GOOD, python_headers=False), "C++ compiler", "wrong", "without Python.h", "apt install python3-dev"),
        (replace(GOOD, ninja=None), "ninja", "missing", "not found", "pip install ninja"),
        (replace(GOOD, ninja=None), "exllamav2 kernels", "missing", "not compiled, and can't be",
         "see the lines before"),
        (replace(GOOD, torch=replace(TORCH, cuda="")), "exllamav2 kernels", "missing", "torch for CUDA",
         "the line about torch"),
        (without("exllamav2"), "exllamav2", "missing", "not installed", "pip install --no-deps exllamav2==0.3.2"),
        (replace(GOOD, versions=VERSIONS | {"exllamav2": "0.2.9"}), "exllamav2", "wrong", "0.2.9, and ==0.3.2",
         "exllamav2==0.3.2"),
        (without("llguidance", "tokenizers"), "GPU packages", "missing",
         "llguidance not installed, tokenizers not installed", "pip install 'nenya[exllamav2]'"),
    ],
)  # fmt: skip
def test_what_is_lacking_and_what_to_do(facts, name, state, detail, fix):
    found = line(facts, name)
    assert found.state == state
    assert detail in found.detail
    assert fix in found.fix
    others = [one for one in lines(facts) if one.state != "ok" and one.needed]
    assert name in {"nenya", "open files"} or found in others


def test_a_newer_minor_version_of_cuda_is_no_trouble():
    facts = replace(GOOD, driver_cuda="12.2", nvcc=Tool("/nvcc", "12.4"))
    assert {one.state for one in lines(facts)} == {"ok"}


@pytest.mark.parametrize(
    ("arches", "capability", "has"),
    [
        (("sm_80",), "8.6", True), (("sm_90",), "8.6", False), (("sm_86",), "8.0", False),
        (("sm_90a",), "9.0", True), (("compute_90",), "12.0", True), (("sm_120",), "12.0", True),
        (("gfx90a",), "9.0", False), (("sm_100",), "12.0", False),
    ],
)  # fmt: skip
def test_which_kernels_run_where(arches, capability, has):
    facts = replace(
        GOOD, gpus=(replace(GPU, capability=capability),), torch=replace(TORCH, arches=arches)
    )
    assert (line(facts, "torch").state == "ok") == has


@pytest.mark.parametrize(
    ("version", "parallel", "state", "needed"),
    [
        (None, False, "ok", False), (None, True, "missing", True), ("2.5.6", True, "missing", True),
        ("2.5.6", False, "ok", False), ("2.8.3", True, "ok", True), ("2.8.3", False, "ok", False),
    ],
)  # fmt: skip
def test_flash_attention_is_needed_for_tensor_parallelism_alone(version, parallel, state, needed):
    versions = VERSIONS if version is None else VERSIONS | {"flash-attn": version}
    need = replace(GPU_NEED, tensor_parallel=parallel)
    found = line(replace(GOOD, versions=versions), "flash-attn", need)
    assert (found.state, found.needed) == (state, needed)


def test_a_config_without_gpus_hears_nothing_of_them():
    bare = replace(without("torch", "exllamav2"), gpus=None, torch=None, nvcc=None)
    names = [one.name for one in lines(bare, Need(kinds=frozenset({"llamacpp"})))]
    assert names[-1] == "xllamacpp"
    assert "GPU" not in names
    remote = [one.name for one in lines(bare, Need(kinds=frozenset()))]
    assert "xllamacpp" not in remote


def test_without_a_config_all_is_told_and_only_the_starter_is_needed():
    bare = replace(without("torch", "exllamav2"), gpus=None, torch=None, nvcc=None)
    found = lines(bare, Need(everything=True))
    assert {one.name for one in found if one.state != "ok"} >= {"GPU", "torch", "nvcc", "exllamav2"}
    assert not [one for one in found if one.state != "ok" and one.needed]
    assert line(replace(bare, versions={}), "xllamacpp", Need(everything=True)).needed


@pytest.mark.parametrize(("most", "needed"), [(1024, False), (1023, True)])
def test_few_open_files_are_needed_and_many_are_better(most, needed):
    assert line(replace(GOOD, open_files=most), "open files").needed is needed
    few = replace(GPU_NEED, connections=500)
    assert line(replace(GOOD, open_files=1024), "open files", few).state == "ok"


def test_ports_in_use():
    taken = replace(PORTS[0], trouble="Address already in use")
    found = line(replace(GOOD, ports=(taken, PORTS[1])), "port 127.0.0.1:8080")
    assert (found.state, found.detail) == ("wrong", "Address already in use")
    assert found.fix == "choose another with --listen, or stop what has it"
    admin = replace(PORTS[1], trouble="Address already in use", is_nenya=True)
    for name in ("port 127.0.0.1:8080", "port 127.0.0.1:9090"):
        found = line(replace(GOOD, ports=(taken, admin)), name)
        assert (found.state, found.detail) == ("ok", "in use, by a Nenya that runs")


@pytest.mark.parametrize(
    ("version", "requirement", "is_met"),
    [
        ("3.14.5", "aiohttp<3.15,>=3.14.5", True), ("3.15", "aiohttp<3.15,>=3.14.5", False),
        ("3.14.4", "aiohttp<3.15,>=3.14.5", False), ("2.9.1+cu128", 'torch>=2.6; extra == "x"', True),
        ("2.0", "numpy>=2", True), ("2", "numpy>=2.0.0", True), ("1.9rc1", "x>=1.9", True), ("1.0", "x", True),
        ("1.0", "x==1.0.0", True), ("1.1", "x!=1.1", False), ("1.1", "x<=1.1", True), ("1.1", "x>1.1", False),
    ],
)  # fmt: skip
def test_versions(version, requirement, is_met):
    assert meets(version, requirement) is is_met


def test_the_numbers_of_a_version():
    assert numbers("2.9.0+cu128") == (2, 9, 0)
    assert numbers("0.3.2.post1") == (0, 3, 2)
    assert numbers("") == ()


# The command.


@pytest.fixture
def machine(monkeypatch):
    """A machine of these facts; returns what was asked of it."""
    asked = []

    def become(facts):
        def found(addresses, *, ask_torch):
            asked.append((dict(addresses), ask_torch))
            return facts

        monkeypatch.setattr(doctor, "collect", found)
        return asked

    return become


@pytest.fixture
def config(tmp_path):
    def write(*engines, more=""):
        path = tmp_path / "nenya.yaml"
        first = engines[0].partition(":")[0]
        path.write_text(
            f"engines: {{{', '.join(engines)}}}\nmodels: {{m: {{targets: [{{engine: {first}}}]}}}}\n{more}"
        )
        return str(path)

    return write


@pytest.fixture
def model(tmp_path):
    quantized = {"quantization_config": {"quant_method": "exl2", "bits": 4.0}}
    return folder(tmp_path / "m", exl2(CONFIG), config=CONFIG | quantized)


def test_all_is_there(machine, config, model, capsys):
    asked = machine(GOOD)
    assert main(["doctor", config(f"e: {{kind: exllamav2, model: {model}}}")]) == 0
    out = capsys.readouterr().out
    assert "ok       engine e             m, exl2; takes 0.9 GiB of 139.0 GiB free\n" in out
    assert out.endswith("\n\nAll that is needed is there.\n")
    assert asked == [({"--listen": "127.0.0.1:8080", "--admin": "127.0.0.1:9090"}, True)]


def test_something_is_lacking(machine, config, model, capsys):
    machine(replace(GOOD, ninja=None))
    assert main(["doctor", config(f"e: {{kind: exllamav2, model: {model}}}")]) == 1
    out = capsys.readouterr().out
    assert "missing  ninja                not found\n" in out
    assert "\n                              pip install ninja\n" in out
    assert out.endswith("\n\n2 to mend.\n")


def test_a_config_without_gpus_does_not_ask_torch(machine, config):
    asked = machine(replace(GOOD, gpus=None))
    more = "server: {admin: null, listen: '127.0.0.1:1234'}\n"
    assert main(["doctor", config("e: {kind: simulated}", more=more)]) == 0
    assert asked == [({"--listen": "127.0.0.1:1234"}, False)]


def test_no_config_asks_for_everything(machine, capsys):
    asked = machine(replace(GOOD, gpus=None, torch=None))
    assert main(["doctor"]) == 0
    assert asked[0][1] is True
    out = capsys.readouterr().out
    assert (
        "missing  GPU                  no NVIDIA driver (there is no nvidia-smi) (not needed here)\n"
        in out
    )
    assert "ok       engine starter       starter, gguf\n" in out


def test_json(machine, config, model, capsys):
    machine(replace(GOOD, gpus=None))
    assert main(["doctor", "--json", config(f"e: {{kind: exllamav2, model: {model}}}")]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["GPU"]["state"] == "missing"
    assert found["GPU"]["needed"] is True
    assert "whether it fits can't be told" in found["engine e"]["detail"]


def test_a_config_with_problems_is_2(machine, tmp_path, capsys):
    asked = machine(GOOD)
    assert main(["doctor", str(tmp_path / "none.yaml")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert asked == []


def told(machine, facts, capsys, file):
    machine(facts)
    code = main(["doctor", file, "--json"])
    return code, {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_models_that_cannot_be_served(machine, config, model, capsys):
    file = config(
        "a: {kind: exllamav2, model: /nowhere}",
        "b: {kind: llamacpp, model: /nowhere.gguf}",
        f"c: {{kind: llamacpp, model: {model}}}",
        "d: {kind: exllamav2, model: starter}",
        f"e: {{kind: exllamav2, model: {model}, draft_model: /no-draft}}",
        f"f: {{kind: exllamav2, model: {model}, loras: [/no-lora]}}",
    )
    code, found = told(machine, GOOD, capsys, file)
    assert code == 1
    assert found["engine a"]["detail"] == "there is no folder /nowhere"
    assert found["engine b"]["detail"] == "there is no file /nowhere.gguf"
    assert "it is exl2, and llama.cpp reads GGUF files" in found["engine c"]["detail"]
    assert found["engine d"]["detail"] == "there is no folder starter"
    assert found["engine e"]["detail"] == "there is no folder /no-draft"
    assert found["engine f"]["detail"] == "/no-lora is no LoRA: it has no adapter_config.json"
    assert {one["state"] for name, one in found.items() if name.startswith("engine ")} == {"wrong"}
    (model / "model.safetensors").write_bytes(b"")
    _, found = told(machine, GOOD, capsys, config(f"e: {{kind: exllamav2, model: {model}}}"))
    assert found["engine e"]["state"] == "wrong"
    assert found["engine e"]["fix"] == f"nenya engines probe {model}"


def test_models_that_do_not_fit(machine, config, model, capsys):
    file = config(f"e: {{kind: exllamav2, model: {model}, cache_tokens: 4194304}}")
    small = replace(GOOD, gpus=(replace(GPU, free_bytes=GIB + GIB // 2),))
    code, found = told(machine, small, capsys, file)
    assert (code, found["engine e"]["state"], found["engine e"]["needed"]) == (0, "wrong", False)
    assert found["engine e"]["fix"].startswith("set `cache")
    code, found = told(
        machine, replace(small, gpus=(replace(GPU, free_bytes=GIB // 2),)), capsys, file
    )
    assert (code, found["engine e"]["needed"]) == (1, True)
    runs = replace(small, ports=(replace(PORTS[1], trouble="in use", is_nenya=True),))
    code, found = told(machine, runs, capsys, file)
    assert (code, found["engine e"]["state"]) == (0, "ok")


def test_models_that_share_a_gpu(machine, config, model, capsys):
    engines = [f"{name}: {{kind: exllamav2, model: {model}}}" for name in ("e", "f", "g")]
    roomy = replace(GOOD, gpus=(replace(GPU, total_bytes=3 * GIB + GIB // 2, free_bytes=3 * GIB),))
    code, found = told(machine, roomy, capsys, config(*engines))
    assert code == 0
    tight = replace(GOOD, gpus=(replace(GPU, total_bytes=2 * GIB, free_bytes=2 * GIB),))
    code, found = told(machine, tight, capsys, config(*engines))
    assert code == 1
    assert found["engines"]["detail"].startswith("e, f, g take 2.8 GiB of 2.0 GiB together")


# What is collected.


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with the tools that are put there, as scripts."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def put(name, script, folder_=bin_):
        folder_.mkdir(parents=True, exist_ok=True)
        path = folder_ / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return put


def test_a_machine_with_tools(tools, tmp_path, monkeypatch):
    tools(
        "nvidia-smi",
        'case "$1" in --query*) echo "0, NVIDIA H200, 143771, 143000, 570.1, 9.0";; '
        '*) echo "| NVIDIA-SMI 570.1   Driver Version: 570.1   CUDA Version: 12.8  |";; esac',
    )
    home = tmp_path / "cuda"
    nvcc = tools("nvcc", "echo 'Cuda compilation tools, release 12.8, V12.8.93'", home / "bin")
    tools("nvcc", "echo 'release 11.0,'")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("CXX", str(tools("my++", "echo 'my++ (Debian) 12.2.0'")))
    assert doctor_facts._nvcc().path == str(nvcc)
    facts = collect({}, ask_torch=False)
    assert facts.gpus == (Gpu(0, "NVIDIA H200", 143771 << 20, 143000 << 20, "570.1", "9.0"),)
    assert facts.driver_cuda == "12.8"
    assert facts.nvcc == Tool(str(nvcc), "12.8")
    assert facts.compiler.version == "12.2.0"
    assert facts.compiler.path.endswith("my++")
    assert facts.python == sys.version_info[:3]
    assert facts.versions["aiohttp"]
    assert facts.torch is None
    assert facts.open_files > 0


def test_a_driver_that_fails(tools):
    tools("nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    facts = collect({}, ask_torch=False)
    assert (facts.gpus, facts.driver_cuda) == ((), "")
    assert facts.gpu_error == "nvidia-smi says: Driver/library version mismatch"


def test_a_tool_that_cannot_be_run(tools):
    path = tools("nvcc", "exit 1")
    assert doctor_facts._nvcc() == Tool(str(path), "")
    assert doctor_facts._tool("no-such-tool") is None


def test_a_cuda_home_without_a_compiler_is_not_passed_over(tools, tmp_path, monkeypatch):
    tools("nvcc", "echo 'release 12.8,'")
    assert doctor_facts._nvcc().version == "12.8"
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "elsewhere"))
    assert doctor_facts._nvcc() is None


@pytest.fixture
def torch_says(monkeypatch):
    """What torch answers in its process; None: it isn't installed."""

    def say(answer, error=""):
        def ask(code, timeout_s, on_error):
            compile(code, "what torch is asked", "exec")
            return on_error(error) if error else answer

        monkeypatch.setattr(doctor_facts, "ask_python", ask)
        monkeypatch.setattr(doctor_facts.importlib.metadata, "version", lambda _: "2.9")

    return say


def test_what_torch_says(torch_says):
    said = {
        "version": "2.9",
        "cuda": "12.8",
        "available": True,
        "arches": ["sm_90"],
        "built": "/x.so",
    }
    torch_says("a library prints this\n" + json.dumps(said) + "\n")
    found, error = doctor_facts._torch()
    assert (found.cuda, found.arches, found.extensions, error) == ("12.8", ("sm_90",), {}, "")
    torch_says("nothing of use")
    assert doctor_facts._torch() == (None, "it said 'nothing of use'")
    torch_says("", error="ImportError: libcudart.so.12")
    assert doctor_facts._torch() == (None, "ImportError: libcudart.so.12")


def test_kernels_that_are_there(torch_says, tmp_path):
    built = tmp_path / "exllamav2_ext.so"
    said = {
        "version": "2.9", "cuda": "12.8", "available": True,
        "extensions": {"exllamav2": {"built": str(built)}, "exllamav3": {"installed": True, "built": "/x"}},
    }  # fmt: skip
    torch_says(json.dumps(said))
    assert collect({}, ask_torch=True).compiled == {"exllamav3"}
    built.write_bytes(b"")
    assert collect({}, ask_torch=True).compiled == {"exllamav2", "exllamav3"}


def test_ports_are_tried():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.close()
        free = f"127.0.0.1:{taken.getsockname()[1] if taken.fileno() != -1 else 0}"
    (port,) = collect({"--listen": free}, ask_torch=False).ports
    assert port == Port("--listen", free)


@pytest.mark.parametrize(
    ("body", "is_nenya"), [(b"<html><title>Nenya</title>", True), (b"nginx", False)]
)
def test_who_has_a_port(body, is_nenya):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        where = f"127.0.0.1:{server.server_port}"
        (port,) = collect({"--admin": where}, ask_torch=False).ports
        server.shutdown()
        thread.join()
    assert port == Port("--admin", where, "Address already in use", is_nenya)


def test_the_page_by_which_a_nenya_is_known():
    page = resources.files("router.server").joinpath("static", "index.html").read_bytes()
    assert b"<title>Nenya</title>" in page[:4096]


@pytest.mark.parametrize("where", ["nonsense", "no.such.host.invalid:1"])
def test_addresses_that_are_none(where):
    (port,) = collect({"--listen": where}, ask_torch=False).ports
    assert port.trouble
    assert not port.is_nenya


def test_a_driver_that_does_not_answer(monkeypatch):
    def fail():
        raise NoAnswer("so")

    monkeypatch.setattr(doctor_facts, "gpus", fail)
    assert doctor_facts._gpus() == ((), "so")


THIRD = Need(kinds=frozenset({"exllamav3"}))


def test_who_serves_exllamav3_needs_it_and_a_gpu_but_not_the_second():
    said = {one.name: one for one in lines(without("exllamav2"), THIRD)}
    assert (said["exllamav3"].state, said["exllamav3"].needed) == ("missing", True)
    assert said["exllamav3"].fix.endswith("pip install exllamav3==1.6.5")
    assert said["torch"].needed
    assert said["nvcc"].needed
    assert said["GPU packages"].needed
    assert not {"exllamav2", "exllamav2 kernels", "flash-attn"} & said.keys()


@pytest.mark.parametrize(
    ("version", "state"), [("1.6.5", "ok"), ("1.7.0", "ok"), ("1.5.9", "wrong")]
)
def test_which_exllamav3(version, state):
    facts = replace(GOOD, versions=VERSIONS | {"exllamav3": version})
    assert line(facts, "exllamav3", THIRD).state == state
    assert line(facts, "exllamav3 kernels", THIRD).detail.endswith("'import exllamav3.ext'")


def test_without_a_config_of_exllamav3_only_where_it_is_installed():
    everything = Need(everything=True)
    assert "exllamav3" not in [one.name for one in lines(GOOD, everything)]
    found = line(replace(GOOD, versions=VERSIONS | {"exllamav3": "1.6.5"}), "exllamav3", everything)
    assert (found.state, found.needed) == ("ok", False)
