"""nvidia-smi's topology and logs, and CSV tables.

The texts are written by hand after outputs that users posted in public issue threads (NVIDIA/nccl, DeepEP, DeepSpeech)
and after nvidia-smi's manual page; the numbers are made up.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.cluster import Device
from planner.errors import InputError
from sim.load import Speed
from traces import catalogue
from traces.csv_tables import read_csv
from traces.importing import detect, read_foreign
from traces.nvidia_smi import MOST, read_dmon, read_query, read_topology

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
"""
DGX = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV12\tNV12\tSYS\tPXB\t48-63,176-191\t3\t\tN/A\n"
    "GPU1\tNV12\t X \tNV4\tPIX\tPXB\t48-63,176-191\t3\t\tN/A\n"
    "GPU2\tNV12\tNV4\t X \tNODE\tSYS\t16-31,144-159\t1\t\tN/A\n"
    "GPU3\tSYS\tPIX\tNODE\t X \tSYS\t16-31,144-159\t1\t\tN/A\n"
    "NIC0\tPXB\tPXB\tSYS\tSYS\t X \t\t\t\t\n" + LEGEND
)
PAIR = (
    """\
        GPU0    GPU1    CPU Affinity    NUMA Affinity
GPU0     X      PHB     0-63            0
GPU1    PHB      X      0-63            0
"""
    + LEGEND
)

DMON = """\
# gpu    pwr  gtemp  mtemp     sm    mem    enc    dec   mclk   pclk
# Idx      W      C      C      %      %      %      %    MHz    MHz
    0     43     35      -      0      0      0      0   1593   1410
    1    243     55      -    100     70      0      0   1593   1410
    0     43     35      -      0      0      0      0   1593   1410
    1    243     55      -     40     70      0      0   1593   1410
# gpu    pwr  gtemp  mtemp     sm    mem    enc    dec   mclk   pclk
# Idx      W      C      C      %      %      %      %    MHz    MHz
    0     43     35      -     30      0      0      0   1593   1410
    1    243     55      -      -      -      0      0   1593   1410
"""
TIMED = """\
#Time        gpu     sm    mem    enc    dec    jpg    ofa
#HH:MM:SS    Idx      %      %      %      %      %      %
 23:59:58      0     50      0      0      0      0      0
 23:59:58      0     70      0      0      0      0      0
 23:59:59      0     20      0      0      0      0      0
 00:00:01      0     10      0      0      0      0      0
"""
DATED = """\
#Date       Time        gpu     sm    mem
#YYYYMMDD   HH:MM:SS    Idx      %      %
 20260102   03:04:05      0      5      0
 20260102   03:04:07      0      6      0
"""
QUERY = """\
timestamp, index, name, utilization.gpu [%], memory.used [MiB]
2026/01/02 03:04:05.000, 0, NVIDIA A100-SXM4-80GB, 37 %, 1234 MiB
2026/01/02 03:04:05.250, 1, NVIDIA A100-SXM4-80GB, [N/A], 1234 MiB
2026/01/02 03:04:06.000, 0, NVIDIA A100-SXM4-80GB, 37 %, 1234 MiB
2026/01/02 03:04:06.250, 1, NVIDIA A100-SXM4-80GB, 5 %, 1234 MiB
2026/01/02 03:04:07.000, 0, NVIDIA A100-SXM4-80GB, 100 %, 1234 MiB
"""
BARE = "uuid, utilization.gpu\nGPU-aa, 10\nGPU-bb, 20\nGPU-aa, 30\n"


def put(tmp_path, text, name="log.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


# --- topology


def test_topology(tmp_path):
    topology = read_foreign(put(tmp_path, DGX))
    assert topology.gpus == (0, 1, 2, 3) and topology.paths[0] == ("X", "NV12", "NV12", "SYS")


def test_links_of_a_topology(tmp_path):
    cluster, notes = read_topology(put(tmp_path, DGX)).cluster(["a100-80-sxm"])
    assert [device.name for device in cluster.devices] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert cluster.link("gpu0", "gpu1") == catalogue.link("nvlink3")
    third = cluster.link("gpu1", "gpu2")
    assert third.kind == "nvlink3-nv4"
    assert third.bytes_per_second == pytest.approx(catalogue.link("nvlink3").bytes_per_second / 3)
    assert {cluster.link(*pair).kind for pair in (("gpu0", "gpu3"), ("gpu1", "gpu3"), ("gpu2", "gpu3"))} == {
        "pcie4-x16"
    }
    assert [note[:18] for note in notes] == ["gpu0 to gpu3: SYS;", "gpu2 to gpu3: NODE"]


def test_unequal_devices_meet_at_the_slower_slot(tmp_path):
    cluster, notes = read_topology(put(tmp_path, PAIR)).cluster(["rtx-5090", "rtx-3090"])
    assert cluster.link("gpu0", "gpu1") == catalogue.link("pcie4-x16")
    assert isinstance(cluster.devices[0], Device) and "PHB" in notes[0]


@pytest.mark.parametrize("kinds", [["rtx-4090"], ["a100-80-sxm"] * 3, ["nonsense"], []])
def test_kinds_that_do_not_fit(tmp_path, kinds):
    with pytest.raises(InputError):
        read_topology(put(tmp_path, DGX)).cluster(kinds)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (PAIR.replace("GPU1    PHB", "GPU1    SYS"), "GPU0 to GPU1: PHB, but SYS the other way"),
        (PAIR.replace("PHB", "XYZ"), r"log\.txt:2: expected 2 of X, NV#"),
        (PAIR[: PAIR.index("GPU1    PHB")], "no row for GPU1"),
        (PAIR.replace("GPU1    PHB", "GPU0    PHB"), r"log\.txt:3"),
        (PAIR.replace("GPU0    GPU1 ", "GPU0    GPU0 "), r"log\.txt:1: 2 GPUs"),
        ("", "no line of GPU0"),
    ],
)
def test_a_topology_is_refused_with_its_place(tmp_path, text, where):
    with pytest.raises(InputError, match=where):
        read_topology(put(tmp_path, text))


# --- logs of use


def test_dmon_without_times_counts_its_interval(tmp_path):
    log = read_foreign(put(tmp_path, DMON))
    assert log.samples == {"gpu0": [(0, 0), (1, 0), (2, 0.3)], "gpu1": [(0, 1), (1, 0.4)]}
    assert log.load() == {"gpu0": [(0, 0), (2, 0.3)], "gpu1": [(0, MOST), (1, 0.4)]}
    assert [note[:9] for note in log.notes] == ["1 samples", "no times "]
    assert read_dmon(put(tmp_path, DMON), 5.0).load(["left", "right"])["left"] == [(0, 0), (10, 0.3)]


def test_dmon_with_times(tmp_path):
    # one second twice is its mean; midnight passes
    assert read_dmon(put(tmp_path, TIMED)).samples == {"gpu0": [(0, 0.6), (1, 0.2), (3, 0.1)]}
    assert read_dmon(put(tmp_path, DATED)).samples == {"gpu0": [(0, 0.05), (2, 0.06)]}


def test_query(tmp_path):
    log = read_foreign(put(tmp_path, QUERY))
    assert log.samples == {"gpu0": [(0, 0.37), (1, 0.37), (2, 1.0)], "gpu1": [(1.25, 0.05)]}
    assert log.load()["gpu0"] == [(0, 0.37), (2, MOST)]
    assert read_query(put(tmp_path, BARE), 2.0).samples == {"GPU-aa": [(0, 0.1), (2, 0.3)], "GPU-bb": [(0, 0.2)]}


def test_the_simulator_takes_a_load(tmp_path):
    for text in (DMON, QUERY):
        for load in read_foreign(put(tmp_path, text)).load().values():
            assert Speed(0.0, load).takes(0, 10**9) >= 10**9


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (DMON.replace("   40     70", "   40"), r"log\.txt:6: 9 columns under a header of 10"),
        (DMON.replace("   40 ", "  400 "), r"log\.txt:6: expected a share"),
        (DMON[DMON.index("    0     43") :], r"log\.txt:1: no line '# gpu"),
        (DMON.replace(" sm ", " xx "), "no values of sm"),
        (TIMED.replace("23:59:59", "25:00:00"), r"log\.txt:5: not a time"),
    ],
)
def test_a_dmon_log_is_refused_with_its_place(tmp_path, text, where):
    with pytest.raises(InputError, match=where):
        read_dmon(put(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (QUERY[QUERY.index("2026") :], r"log\.txt:1: expected a header with utilization\.gpu"),
        (QUERY.replace("5 %", "5 % of it"), r"log\.txt:5: expected a share"),
        (QUERY.replace(", 5 %", ""), r"log\.txt:5: expected 5 columns"),
        (QUERY.replace("03:04:07", "3 pm"), r"log\.txt:6: not a time"),
    ],
)
def test_a_query_log_is_refused_with_its_place(tmp_path, text, where):
    with pytest.raises(InputError, match=where):
        read_query(put(tmp_path, text))


def test_names_must_fit_the_log(tmp_path):
    with pytest.raises(InputError, match="2 GPUs, but 1 names"):
        read_dmon(put(tmp_path, DMON)).load(["only"])


# --- CSV tables


def test_a_table_of_messages(tmp_path):
    text = "# by hand\nTime_us, bytes, remark\n10, 1024, x\n12, 1024, y\n\n20, 4096, z\n"
    samples = read_foreign(put(tmp_path, text)).messages("pcie")["message"]
    assert [(s.link, s.ranks, s.nbytes, s.repeat) for s in samples] == [
        ("pcie", 2, 1024, 0),
        ("pcie", 2, 1024, 1),
        ("pcie", 2, 4096, 0),
    ]
    assert [s.total_seconds for s in samples] == pytest.approx([1e-5, 1.2e-5, 2e-5])
    assert read_csv(put(tmp_path, "link,ranks,nbytes,seconds\nib,4,8,1\n")).messages("x")["message"][0].link == "ib"


def test_a_table_of_parts(tmp_path):
    text = "device,model,height,width,dtype,batch,rows,time_ms\ngpu,unet,64,64,float16,2,32,5\ngpu,unet,64,64,float16,2,32,1 2\n"
    parts = read_csv(put(tmp_path, text)).parts
    assert [(p.rows, p.repeat, p.seconds) for p in parts] == [(32, 0, (0.005,)), (32, 1, (0.001, 0.002))]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nbytes,when\n1,2\n", r"log\.txt:1: columns must be"),
        ("nbytes,seconds\n1,2,3\n", r"log\.txt:2: 3 columns"),
        ("nbytes,seconds\n-1,2\n", r"log\.txt:2: nbytes must be"),
        ("nbytes,seconds\n1,nan\n", r"log\.txt:2: seconds must be"),
        ("nbytes,nbytes,seconds\n", r"log\.txt:1: a column is there twice"),
        ("nbytes,seconds\n", "an empty table"),
    ],
)
def test_a_table_is_refused_with_its_place(tmp_path, text, where):
    with pytest.raises(InputError, match=where):
        read_csv(put(tmp_path, text))


# --- any of them, damaged

TEXTS = {"topo": DGX, "dmon": TIMED, "query-gpu": QUERY, "csv": "nbytes,seconds\n1,2\n"}
READERS = {"topo": read_topology, "dmon": read_dmon, "query-gpu": read_query, "csv": read_csv}


@pytest.mark.parametrize("name", TEXTS)
def test_detection(tmp_path, name):
    assert detect(put(tmp_path, TEXTS[name])) == name


@pytest.mark.parametrize("name", ["topo", "csv"])
def test_one_file_at_a_time(tmp_path, name):
    paths = [put(tmp_path, TEXTS[name], f"{i}.txt") for i in range(2)]
    with pytest.raises(InputError, match="one at a time"):
        read_foreign(*paths)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(TEXTS)), st.integers(0, 900), st.binary(max_size=5), st.integers(0, 900))
def test_damage_is_refused_or_survived(tmp_path, name, at, junk, gone):
    data = TEXTS[name].encode()
    path = tmp_path / "log.txt"
    path.write_bytes(data[:at] + junk + data[at + gone :])
    for read in (READERS[name], read_foreign):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)
