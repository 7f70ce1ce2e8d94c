"""Reading what the compiler for TPU wrote, on small texts; with libtpu, compiling; without, lowering."""

import importlib.util
import json
import subprocess
import sys

import chex
import jax
import jax.export
import jax.numpy as jnp
import pytest

from experiments.benchmarks import tpu_compile as benchmark
from hardmine_jax.models import layers
from hardmine_jax.tasks.pose.presets import PRESETS

# The modules that the script itself imported, and one that it imports when steps are asked for.
chips, kernels, tables, tpu_layers = (
    sys.modules[f"tpu_{name}"] for name in ("chips", "kernels", "tables", "layers")
)
hlo = chips.tpu_hlo
import tpu_steps as steps  # noqa: E402

ESTIMATED = ', backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'.format
# A loop of 2..8 with a loop of 4 in it, branches, a gather without an estimate, and what costs nothing.
PROGRAM = f"""HloModule jit_step, is_scheduled=true

%gathering (p.0: f32[9,4], p.1: s32[3]) -> f32[3,4] {{
  %p.0 = f32[9,4]{{1,0:T(8,128)}} parameter(0)
  %p.1 = s32[3]{{0:T(128)}} parameter(1)
  ROOT %gather.1 = f32[3,4]{{1,0:T(8,128)}} gather(%p.0, %p.1), offset_dims={{1}}
}}

%inner_body (a.1: (s32[], f32[9,4])) -> (s32[], f32[9,4]) {{
  %a.1 = (s32[]{{:T(128)}}, f32[9,4]{{1,0:T(8,128)}}) parameter(0)
  %fusion.1 = f32[9,4]{{1,0:T(8,128)}} fusion(%a.1), kind=kLoop, calls=%none{ESTIMATED(10)}
  ROOT %tuple.1 = (s32[]{{:T(128)}}, f32[9,4]{{1,0:T(8,128)}}) tuple(%a.1, %fusion.1)
}}

%inner_condition (a.2: (s32[], f32[9,4])) -> pred[] {{
  %a.2 = (s32[]{{:T(128)}}, f32[9,4]{{1,0:T(8,128)}}) parameter(0)
  %constant.2 = s32[]{{:T(128)}} constant(4)
  %get-tuple-element.2 = s32[]{{:T(128)}} get-tuple-element(%a.2), index=0
  ROOT %lt.2 = pred[]{{:T(512)}} compare(%get-tuple-element.2, %constant.2), direction=LT
}}

%outer_body (a.3: (f32[9,4], s32[])) -> (f32[9,4], s32[]) {{
  %a.3 = (f32[9,4]{{1,0:T(8,128)}}, /*index=1*/s32[]{{:T(128)}}) parameter(0)
  %while.3 = (s32[], f32[9,4]) while(%a.3), condition=%inner_condition, body=%inner_body
  %add.3 = s32[]{{:T(128)}} add(%a.3, %a.3)
  %fusion.3 = f32[3,4]{{1,0:T(8,128)}} fusion(%a.3, %a.3), kind=kCustom, calls=%gathering
  ROOT %tuple.3 = (f32[9,4]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) tuple(%a.3, %add.3)
}}

%outer_condition (a.4: (f32[9,4], s32[])) -> pred[] {{
  %a.4 = (f32[9,4]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) parameter(0)
  %constant.4 = s32[]{{:T(128)}} constant(8)
  %get-tuple-element.4 = s32[]{{:T(128)}} get-tuple-element(%a.4), index=1
  ROOT %lt.4 = pred[]{{:T(512)}} compare(%get-tuple-element.4, %constant.4), direction=LT
}}

%cheap (b.1: f32[9,4]) -> f32[9,4] {{
  ROOT %copy.5 = f32[9,4]{{1,0:T(8,128)}} copy(%b.1){ESTIMATED(1)}
}}

%dear (b.2: f32[9,4]) -> f32[9,4] {{
  ROOT %copy.6 = f32[9,4]{{1,0:T(8,128)}} copy(%b.2){ESTIMATED(1000)}
}}

ENTRY %main (x: f32[9,4]) -> f32[9,4] {{
  %x = f32[9,4]{{1,0:T(8,128)}} parameter(0)
  %constant.7 = s32[]{{:T(128)}} constant(2)
  %copy.7 = s32[]{{:T(128)}} copy(%constant.7)
  %tuple.7 = (f32[9,4]{{1,0:T(8,128)}}, s32[]{{:T(128)}}) tuple(%x, %copy.7)
  %while.7 = (f32[9,4], s32[]) while(%tuple.7), condition=%outer_condition, body=%outer_body
  %all-reduce.7 = f32[9,4]{{1,0:T(8,128)}} all-reduce(%x), to_apply=%add{ESTIMATED(500)}
  %sort.7 = (f32[9,4]{{1,0:T(8,128)}}, s32[9,4]{{1,0:T(8,128)}}) sort(%x, %x), dimensions={{0}}
  %conditional.7 = f32[9,4] conditional(%x, %x), branch_computations={{%cheap, %dear}}
  %buffer.7 = f32[9,4]{{1,0:T(8,128)}} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %custom-call.7 = f32[9,4]{{1,0:T(8,128)}} custom-call(%x), custom_call_target="tpu_custom_call"
}}
"""


class _Device:
    device_kind = "TPU v5 lite"


def test_cycles_are_summed_over_loops():
    program = hlo.parse(PROGRAM)
    known = {one.name: (one.times, one.cycles) for one in program.launches if one.cycles is not None}
    # Turned from 2 to 8, and 4 times in each; of branches the dearest.
    assert known == {"fusion.1": (24, 10), "all-reduce.7": (1, 500), "copy.6": (1, 1000)}
    assert hlo.cycles(program.launches) == 1740 and program.unknown_loops == []


def test_what_has_no_estimate_is_named():
    missing = {one.opcode: one.times for one in hlo.parse(PROGRAM).launches if one.cycles is None}
    assert missing == {"gather": 6, "sort": 1, "tpu_custom_call": 1}
    row = chips.costs(PROGRAM, _Device)
    # Bytes of the results, loops counted; a sort gives two arrays.
    assert row["no_estimate"] == {"gather": [6, 6 * 48], "sort": [1, 288], "tpu_custom_call": [1, 144]}


def test_a_loop_of_unknown_length_is_counted_once_and_named():
    text = PROGRAM.replace("constant(4)", "constant(4), kind=x").replace(
        "compare(%get-tuple-element.2, %constant.2), direction=LT", "and(%get-tuple-element.2, %constant.2)"
    )
    program = hlo.parse(text)
    assert program.unknown_loops == ["while.3"]
    assert {one.times for one in program.launches if one.name == "fusion.1"} == {6}


def test_the_compilers_own_trip_count_counts_first():
    told = 'body=%inner_body, backend_config={"known_trip_count":{"n":"7"}}'
    program = hlo.parse(PROGRAM.replace("body=%inner_body", told))
    assert {one.times for one in program.launches if one.name == "fusion.1"} == {42}


@pytest.mark.parametrize(
    "shape, expected, padded",
    [
        ("f32[9,4]{1,0:T(8,128)}", 144, 4 * 16 * 128),
        # Channels 17 outermost: only the images' 100 rows of 30 are padded.
        ("bf16[100,30,17]{1,0,2:T(8,128)(2,1)S(1)}", 102_000, 2 * 17 * 104 * 128),
        ("(f32[2]{0:T(128)}, /*index=1*/pred[3,5]{1,0:T(8,128)(4,1)})", 8 + 15, 512 + 1024),
        ("s32[]{:T(128)}", 4, 4),
        ("f32[9,4]", 144, 144),
    ],
)
def test_bytes_of_shapes(shape, expected, padded):
    assert (hlo.nbytes(shape), hlo.nbytes(shape, padded=True)) == (expected, padded)


def test_a_row_of_costs():
    row = chips.costs(PROGRAM, _Device)
    assert (row["cycles"], row["cycles_collectives"], row["launches"]) == (1740, 500, 34)
    # 197 10^12 operations a second by 4 units of 128 x 128: 1.5 GHz.
    assert row["milliseconds"] == pytest.approx(1740 / 1.503e6, rel=1e-3)
    assert row["collectives"] == {"all-reduce": [1, 144]}
    assert row["dominant"][0] == ["", "copy", round(1000 / 1740, 3)] and row["padding"] > 10
    shown = row | {"compiles": True, "compile_s": 1.0, "lower_s": 0.5, "temporaries": 2e6}
    cells = tables._kernel_cells(shown, shown)
    # At least so long: gathers, a sort and a kernel are not in it.
    assert cells[:5] == ["> 1.2", "> 1.00", "34", "2.0", "1.5"] and "6 gather" in cells[5]
    moving = shown | {"no_estimate": {"reshape": [2, 10**9], "all-reduce": [1, 144]}}
    assert tables._kernel_cells(moving, moving)[:2] == ["1.2", "1.00"]
    assert tables.moved(row) == "1 all-reduce 0.00 MB"


def test_what_is_there_is_not_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "about", lambda: {"date": "2026-11-28", "jax": "1", "libtpu": "2"})
    path, made = tmp_path / "rows.jsonl", []

    def make():
        made.append(1)
        return {"compiles": True}

    first = chips.Rows(path).get({"topology": "v5e:2x2", "question": "a"}, make)
    assert chips.Rows(path).get({"topology": "v5e:2x2", "question": "a"}, make) == first
    chips.Rows(path).get({"topology": "v5p:2x2x1", "question": "a"}, make)
    monkeypatch.setattr(chips, "about", lambda: {"date": "2026-11-28", "jax": "1", "libtpu": "3"})
    chips.Rows(path).get({"topology": "v5e:2x2", "question": "a"}, make)
    assert len(made) == 3 == len(path.read_text().splitlines())


def test_a_program_that_does_not_compile_is_a_row():
    def lower():
        raise NotImplementedError("no sort of that on TPU\nand more")

    row = chips.compiled(lower, _Device)
    assert row == {"compiles": False, "error": "NotImplementedError: no sort of that on TPU"}


def test_branches_for_cpu_are_found_and_taken():
    def twice(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x + x, default=lambda x: x * 2)

    operands = (jax.ShapeDtypeStruct((3,), jnp.float32),)
    assert kernels.has_cpu_branch(twice, operands) and not kernels.has_cpu_branch(jnp.sin, operands)
    with kernels._cpu_branches():
        traced = str(jax.make_jaxpr(jax.jit(twice))(*operands))
    assert "add" in traced and "mul" not in traced
    # Nothing of that is left in a cache.
    assert "mul" in str(jax.make_jaxpr(jax.jit(twice))(*operands))


def test_ways_to_one_layer_agree():
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (2, 5, 4, 3))
    wide, narrow = jax.random.normal(keys[1], (4, 4, 3, 6)), jax.random.normal(keys[2], (1, 1, 3, 6))
    ours = tpu_layers.of_module(layers.DoubleConvTranspose(6))
    chex.assert_trees_all_close(ours(images, wide), tpu_layers.dilated(images, wide), rtol=1e-5, atol=1e-5)
    for stride in (1, 2):
        ours = tpu_layers.of_module(layers.Conv(6, 1, stride))
        theirs = tpu_layers.convolution(images, narrow, stride)
        chex.assert_trees_all_close(ours(images, narrow), theirs, rtol=1e-5, atol=1e-5)


def test_ways_to_one_question_give_the_same_shapes():
    for kernel in (*kernels.selectors(), *kernels.heatmaps(), *tpu_layers.networks()):
        found = [jax.eval_shape(way, *kernel.operands) for way in kernel.ways.values()]
        assert all(one == found[0] for one in found), kernel.question


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^libtpu, .* pip install 'jax\[tpu\]==\d[^\n]*$"):
        chips.topology("v5e:2x2")


# One of each network, the laptop's being a small HRNet; the others are deeper, wider or larger.
FAST = ("laptop", "simple_baseline_50", "cpn_50", "hourglass_2", "vgg16", "resnet50")
PRESET_STEPS = [("pose", name) for name in PRESETS]
PRESET_STEPS += [("detection", name) for name in ("laptop", "vgg16", "resnet50")]


@pytest.mark.parametrize(
    "task, preset",
    [row if row[1] in FAST else pytest.param(*row, marks=pytest.mark.slow) for row in PRESET_STEPS],
)
def test_the_step_of_every_preset_is_lowered_for_tpu_and_gpu(task, preset):
    made = steps.make(steps.Step(task, preset, 1, {"image_size": (64, 64)}), jax.devices()[:1])
    exported = jax.export.export(made.parallel.train_step.compiled, platforms=("tpu", "cuda"))
    assert exported(made.state, made.batch).platforms == ("tpu", "cuda")


def test_a_step_is_made_for_the_devices_it_is_handed():
    devices = jax.devices()[1:4]
    made, one = (steps.make(steps.Step("detection", "laptop", 2), some) for some in (devices, devices[:1]))
    assert list(made.parallel.mesh.devices.flat) == devices
    images = made.batch["image"]
    assert images.shape == (6, 240, 320, 3) and images.sharding.shard_shape(images.shape)[0] == 2
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(made.state))
    # Of one device, however many there are.
    assert made.flops() == one.flops() > 0


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'jax[tpu]'"
)


def _run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, benchmark.__file__, *flags], capture_output=True, text=True)


@pytest.mark.slow
@needs_libtpu
def test_kernels_and_a_step_compile_for_tpu(tmp_path):
    path = tmp_path / "rows.jsonl"
    run = _run("--quick", "--json", str(path))
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["compiles"] and row["cycles"] > 0 and row["memory_share"] < 1 for row in rows)
    step = rows[-1]
    assert step["question"] == "pose laptop" and 0 < step["share_of_peak"] < 1
    assert step["collectives"]["all-reduce"][1] > 4 * 2_624_673 / 2
    # What is there is only printed.
    assert _run("--quick", "--json", str(path)).stdout.count("v5e:2x2 |") == 0


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v9z:2x2", "v5e:3x3", "v3:2x2", "nonsense"])
def test_an_unknown_topology_is_one_line(topology):
    run = _run("--topology", topology)
    assert run.returncode == 2 and run.stderr.splitlines()[-1].startswith(f"error: --topology {topology}: ")
