"""The scaling benchmark: its reading of HLO, its claims about real steps, its model on paper, its command."""

import dataclasses
import io
import json
import subprocess
import sys

import jax
import pytest
import tyro
from rich.console import Console

from experiments.benchmarks import scaling as benchmark

# The modules that the script itself imported.
collectives, claims, hardware, measure, model, steps = (
    sys.modules[name]
    for name in (
        "collectives",
        "scaling_claims",
        "scaling_hardware",
        "scaling_measure",
        "scaling_model",
        "scaling_steps",
    )
)

HLO = """
  %psum.1 = f32[2,16]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(step)/shard_map/jvp(Net)/stem/bn/norm/psum" stack_frame_id=7}
  %all-reduce.1 = (f32[3,3,4,5]{3,2,1,0}, f32[5]{0}, f32[2,8]{1,0}) all-reduce(%b, %c, %d), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(step)/shard_map/(psum:psum:transpose(jvp(Net))/stem/bn/norm/psum)"}
  %all-reduce.2 = (f32[7]{0:T(128)}, f32[5]{0}, f32[], f32[17]{0}, f32[3]{0}, /*index=5*/f32[]) all-reduce(%e, %f, %g, %h, %i, %j), replica_groups=[1,4]<=[4], to_apply=%add, metadata={op_name="jit(step)/shard_map/(psum:psum:psum:jvp()/psum:psum:jvp()/psum)"}
  %gather = s32[4,8]{1,0} all-gather(%k), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, metadata={op_name="jit(step)/shard_map/jvp()/all_gather"}
  %user = f32[7]{0} get-tuple-element(%all-reduce.2), index=0, metadata={op_name="jit(step)/shard_map/psum"}
"""  # noqa: E501
TINY = steps.Sizes(image_size=32, images=1, k=8, proposals=16, rounds=0)
FAST = hardware.Hardware(
    name="by hand", peak=2.0, utilisation=0.5, memory=1.0, group=4, fast=1.0, slow=0.5, torus=False,
    wraps_from=0, fast_hop=1.0, slow_hop=2.0, start=3.0,
)  # fmt: skip
TORUS = dataclasses.replace(FAST, torus=True, wraps_from=64, group=4096)
needs_devices = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py simulates them)"
)


def _share(hlo: str, purpose: str, gradient=(), metrics=()):
    return collectives.purposes(collectives.parse(hlo), gradient=gradient, metrics=metrics)[purpose]


def _line(kind: str, result: str, name: str, groups: str = "{{0,1}}") -> str:
    return f'  %x = {result} {kind}(%y), replica_groups={groups}, metadata={{op_name="{name}"}}'


def test_parse_finds_each_collective_with_its_arrays():
    found = collectives.parse(HLO)
    assert [(one.kind, len(one.pieces), one.group) for one in found] == [
        ("all-reduce", 1, 4),
        ("all-reduce", 3, 4),
        ("all-reduce", 6, 4),
        ("all-gather", 1, 4),
    ]
    assert [piece.shape for piece in found[1].pieces] == [(3, 3, 4, 5), (5,), (2, 8)]
    assert [piece.shape for piece in found[2].pieces] == [(7,), (5,), (), (17,), (3,), ()]
    assert found[1].pieces[2].name == "jit(step)/shard_map/transpose(jvp(Net))/stem/bn/norm/psum"
    assert [one.nbytes for one in found] == [128, 4 * (180 + 5 + 16), 4 * (7 + 5 + 1 + 17 + 3 + 1), 128]
    assert collectives.collective_bytes(HLO) == (4, sum(one.nbytes for one in found))


@pytest.mark.parametrize(
    "groups, members",
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['data'=8] {'data'}", 8),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", 2),
        ("mesh['a'=2,'b'=4] {'b':(2)2,'a'}", 4),
        ("{}", 0),
    ],
)
def test_members_of_a_group_however_they_are_written(groups, members):
    (found,) = collectives.parse(_line("all-reduce", "f32[2]{0}", "a", groups))
    assert found.group == members


def test_purposes_of_merged_collectives():
    shares = collectives.purposes(collectives.parse(HLO), gradient=(180, 5, 7, 5), metrics=(1, 3))
    # One all-reduce of its own, and one that rides on batch norm's.
    assert shares["gradient"] == collectives.Share(2, 1, ("all-reduce",), 4 * 197, 4 * 197)
    assert shares["batch norm"] == collectives.Share(2, 0, ("all-reduce",), 4 * 48, 4 * 48)
    assert shares["metrics"] == collectives.Share(1, 1, ("all-reduce",), 4 * 22, 4 * 22)
    assert shares["mining"] == collectives.Share(1, 1, ("all-gather",), 32, 128)
    assert shares["unclassified"].collectives == 0
    everything = sum(share.received for share in shares.values())
    assert everything == collectives.collective_bytes(HLO)[1]


@pytest.mark.parametrize(
    "line, number, nbytes",
    [
        (_line("all-reduce-start", "f32[10]{0}", "jit(step)/psum"), 1, 40),
        (_line("all-reduce-start", "(f32[10]{0}, bf16[3]{0})", "jit(step)/psum"), 1, 46),
        (_line("all-reduce-done", "f32[10]{0}", "jit(step)/psum"), 0, 0),
        (_line("all-gather-start", "(s32[4]{0}, s32[8]{0})", "a/all_gather"), 1, 32),
        (_line("all-gather-start", "((s32[4], f32[1]), (s32[8], f32[2]))", "a/all_gather"), 1, 40),
        (_line("all-gather-done", "s32[8]{0}", "a/all_gather"), 0, 0),
        (_line("collective-permute-start", "(f32[4]{0}, f32[4]{0}, u32[], u32[])", "a"), 1, 16),
        (_line("all-to-all", "(bf16[3]{0}, pred[5]{0}, u4[3]{0})", "a"), 1, 6 + 5 + 2),
        (_line("reduce-scatter", "f8e4m3fn[6]{0}", "a"), 1, 6),
        (_line("all-reduce", "c64[2]{0}", "a"), 1, 16),
        (_line("fusion", "f32[2]{0}", "a"), 0, 0),
    ],
)
def test_every_kind_counts_once_and_every_type_at_its_size(line, number, nbytes):
    assert collectives.collective_bytes(line) == (number, nbytes)


def test_an_unknown_type_is_an_error():
    with pytest.raises(ValueError, match="type opaque in a collective"):
        collectives.parse(_line("all-reduce", "opaque[2]", "a"))


@pytest.mark.parametrize(
    "line",
    [
        # More than gradient and metrics have; another type; nobody's name; the names of other parts.
        _line("all-reduce", "f32[9]{0}", "jit(step)/shard_map/psum"),
        _line("all-reduce", "s32[5]{0}", "jit(step)/shard_map/psum"),
        _line("all-reduce", "f32[5]{0}", "jit(step)/shard_map/jvp(Net)/head/psum"),
        _line("all-reduce", "(f32[5]{0}, f32[5]{0}, f32[5]{0})", "jit(step)/shard_map/(psum:psum)"),
        _line("all-reduce", "f32[5]{0}", ""),
        _line("all-gather", "f32[8]{0}", "jit(step)/shard_map/jvp()/all_gather"),
        _line("all-gather", "s32[8]{0}", "jit(step)/shard_map/other"),
        _line("reduce-scatter", "f32[5]{0}", "jit(step)/shard_map/psum"),
        # How often a loop turns is not in the text.
        _line("all-reduce", "f32[5]{0}", "jit(step)/shard_map/while/body/jvp(Net)/bn/norm/psum"),
    ],
)
def test_what_is_not_understood_is_unclassified(line):
    share = _share(line, "unclassified", gradient=(5,))
    assert share.collectives == 1 and share.received == collectives.collective_bytes(line)[1]


def test_gradient_and_metrics_of_one_size_are_told_apart_by_company():
    hlo = "\n".join(
        [
            _line("all-reduce", "f32[17]{0}", "jit(step)/shard_map/psum"),
            _line("all-reduce", "(f32[17]{0}, f32[99]{0})", "jit(step)/shard_map/psum"),
        ]
    )
    assert _share(hlo, "gradient", (99, 17), (17,)) == collectives.Share(1, 1, ("all-reduce",), 464, 464)
    assert _share(hlo, "metrics", (99, 17), (17,)).sent == 68


def _measure(name: str, variation: str = "", **sizes) -> claims.Measurement:
    sizes = dataclasses.replace(TINY, **sizes)
    return measure.measure(name, steps.PROGRAMS[name](sizes), sizes, variation)


@pytest.fixture(scope="module")
def measured() -> list[claims.Measurement]:
    """Real steps on the devices of the tests."""
    return [
        _measure("detection"),
        _measure("detection_global", rounds=1),
        _measure("detection_global", "images", images=2),
        _measure("detection_global", "k", k=16),
    ]


@needs_devices
def test_claims_hold_for_real_steps(measured):
    made = claims.checks(measured)
    assert len(made) == 8 and all(check.against == [] for check in made)


@needs_devices
def test_numbers_of_real_steps(measured):
    detection, mined, images, k = measured
    assert all(one.devices == 8 and one.processes == 1 and one.groups == [8] for one in measured)
    # Four bytes of each number.
    assert detection.shares["gradient"].sent == detection.parameters == 4 * (942_944 + 416)
    assert mined.shares["gradient"].collectives == 1
    assert detection.shares["batch norm"].sent == 2 * 2 * 4 * (16 + 2 * 32 + 2 * 64)
    sent = [one.shares["mining"].sent for one in (mined, images, k)]
    assert sent == [4 * 8, 4 * 8, 4 * 16] and mined.shares["mining"].received == 8 * 4 * 8
    assert (mined.units, images.units) == (20, 40)
    assert mined.step > 0 and images.step == 0 and mined.compile > 0


@needs_devices
def test_a_measurement_survives_json_and_fills_a_row(measured):
    again = [claims.from_json(json.loads(json.dumps(one._asdict()))) for one in measured]
    assert again == measured
    console = Console(width=250, file=io.StringIO())
    console.print(benchmark.measured_table("a title", measured))
    console.print(benchmark.checks_table(claims.checks(measured)))
    text = console.file.getvalue()
    assert "a title" in text and "1: 32 > 256 B" in text and "detection_global 2 x images" in text
    assert "11 all-reduce" in text and "no: " not in text


def _tampered(one: claims.Measurement, purpose: str, **changes) -> claims.Measurement:
    share = one.shares[purpose]._replace(**changes)
    return one._replace(shares=one.shares | {purpose: share})


@needs_devices
@pytest.mark.parametrize(
    "index, purpose, changes, claim",
    [
        (0, "unclassified", {"collectives": 1}, "of a known purpose"),
        (0, "gradient", {"own": 2}, "rides on batch norm"),
        (1, "gradient", {"collectives": 2}, "one gradient reduction"),
        (1, "gradient", {"sent": 4}, "one gradient reduction"),
        (1, "mining", {"sent": 4 * 20, "received": 8 * 4 * 20}, "one all-gather"),
        (0, "mining", {"collectives": 1}, "one all-gather"),
        (1, "metrics", {"collectives": 5}, "at most 4"),
        (2, "metrics", {"sent": 999}, "twice the images"),
        (3, "gradient", {"collectives": 2}, "twice the k"),
    ],
)
def test_claims_that_do_not_hold_are_found(measured, index, purpose, changes, claim):
    wrong = [*measured]
    wrong[index] = _tampered(wrong[index], purpose, **changes)
    failed = [check for check in claims.checks(wrong) if check.against]
    assert any(claim in check.claim for check in failed)


@needs_devices
def test_more_devices_must_not_send_more(measured):
    one = measured[1]
    fewer = one._replace(devices=2, groups=[2])
    mined = _tampered(fewer, "mining", received=2 * 4 * 8)
    held = [check for check in claims.checks([mined, one]) if check.against]
    assert held == []
    failed = [check for check in claims.checks([_tampered(mined, "metrics", sent=4), one]) if check.against]
    assert [check.against for check in failed] == [["detection_global, 1 x 8 devices"]]
    alone = claims.checks([one._replace(groups=[4, 8])])
    assert [check.claim for check in alone if check.against] == [
        "all devices take part in each; one device reduces by itself"
    ]


@needs_devices
@pytest.mark.parametrize("wrong", [False, True])
def test_a_failed_claim_ends_with_one_line(measured, wrong, monkeypatch, capsys):
    found = [_tampered(measured[0], "unclassified", collectives=1)] if wrong else measured[:1]
    monkeypatch.setattr(benchmark, "start_worker", lambda *args, **options: found)
    config = benchmark.Config(parts=("devices",), num_devices=(8,))
    assert benchmark.main(config) == int(wrong)
    printed = capsys.readouterr()
    assert "detection" in printed.out and "What the collectives show" in printed.out
    said = "error: 1 of 5 claims do not hold: every collective is of a known purpose\n"
    assert printed.err == (said if wrong else "")


@pytest.mark.parametrize(
    "count, expected",
    [(1, (1, 1, 1)), (8, (2, 2, 2)), (32, (2, 4, 4)), (12, (2, 2, 3)), (4096, (16, 16, 16))],
)
def test_sides_of_a_block(count, expected):
    assert hardware.sides(count) == expected


def test_all_reduce_by_hand():
    # 3 us to start, 3 hops of 1 us there and back, 2 x 3/4 of 4 MB at 1 GB/s.
    assert hardware.all_reduce(4e6, 4, FAST) == pytest.approx(3e-6 + 6e-6 + 6e-3)
    # And between 2 groups a hop of 2 us, 2 x 1/2 of a quarter each at 0.5 GB/s.
    assert hardware.all_reduce(4e6, 8, FAST) == pytest.approx(3e-6 + 2 * 5e-6 + 6e-3 + 2e-3)
    assert hardware.all_reduce(4e6, 1, FAST) == hardware.all_gather(4e6, 1, FAST) == 0.0


def test_all_gather_by_hand():
    assert hardware.all_gather(1e6, 4, FAST) == pytest.approx(3e-6 + 3e-6 + 3e-3)
    # Both groups' megabytes over 3 fast links, the other group's over the slow one.
    assert hardware.all_gather(1e6, 8, FAST) == pytest.approx(3e-6 + 5e-6 + 6e-3 + 2e-3)


def test_a_torus_by_hand():
    # Half a side is the way to the farthest once it is closed; before, half of the links lead nowhere.
    assert hardware.hops(8, TORUS) == pytest.approx(3e-6)
    assert hardware.hops(512, TORUS) == pytest.approx(12e-6)
    assert hardware.all_reduce(8e6, 8, TORUS) == pytest.approx(3e-6 + 6e-6 + 2 * 7 / 8 * 8e6 / 0.5e9)
    assert hardware.all_reduce(64e6, 64, TORUS) == pytest.approx(3e-6 + 12e-6 + 2 * 63e6 / 1e9)


def test_share_of_the_peak_is_the_compiled_steps_where_none_is_given(tmp_path, monkeypatch):
    rows = [
        {"topology": "v5p:2x2x1", "question": "a step", "share_of_peak": 0.25},
        {"topology": "v5e:2x2", "question": "a step", "share_of_peak": 0.5},
        {"topology": "v5p:2x2x1", "question": "top_k", "compiles": True},
        {"topology": "v5p:2x2x1", "question": "a step", "share_of_peak": 0.125},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(hardware, "ESTIMATES", tmp_path / "rows.jsonl")
    hardware._estimates.cache_clear()
    tpu = dataclasses.replace(TORUS, name="TPU v5p", utilisation=None)
    # The last of its generation; where there is none, what is assumed.
    assert hardware.share_of_peak(tpu, "a step") == 0.125
    assert hardware.share_of_peak(tpu, "another") == hardware.ASSUMED
    assert hardware.share_of_peak(FAST, "a step") == 0.5
    hardware._estimates.cache_clear()


def test_mining_by_hand():
    small = model.mine(3, 10, 4, FAST)
    assert (small.sent, small.received) == (12, 48)
    assert small.moving == hardware.all_gather(12, 4, FAST)
    assert small.choosing == pytest.approx(model.TOP_K_BYTES * (12 + 20) / 1e9)
    # Beyond a device's units it sends what it has.
    assert model.mine(30, 10, 4, FAST).sent == model.mine(10, 10, 4, FAST).sent == 40
    assert small.seconds == small.moving + small.choosing


def test_costs_by_hand():
    work = model.Work("small", "a step", 10**9, 4000, (8, 16), (4, 8), units=10, hard=2)
    cost = model.costs(work, 4, 3, FAST)
    assert cost.compute == pytest.approx(2e9 / 1e12)
    assert cost.gradient == hardware.all_reduce(4000, 4, FAST)
    assert cost.metrics == pytest.approx(hardware.all_reduce(4, 4, FAST) + hardware.all_reduce(8, 4, FAST))
    assert cost.norms == pytest.approx(
        2 * (hardware.all_reduce(8, 4, FAST) + hardware.all_reduce(16, 4, FAST))
    )
    assert cost.mining == model.mine(8, 10, 4, FAST) and cost.fixed == model.mine(3, 10, 4, FAST)


def test_efficiency_by_hand():
    mining = model.Mining(0, 0, moving=0.25, choosing=0.25)
    cost = model.Costs(compute=3.0, gradient=1.0, metrics=0.5, norms=2.0, mining=mining, fixed=mining)
    assert cost.efficiency(overlap=False) == pytest.approx(3 / 5)
    assert cost.efficiency(overlap=True) == pytest.approx(3 / 4)
    assert cost.efficiency(overlap=True, synchronised=True) == pytest.approx(3 / 6)
    # The backward pass hides two seconds and no more.
    long = dataclasses.replace(cost, gradient=4.0)
    assert long.efficiency(overlap=True) == pytest.approx(3 / (3 + 2 + 1))


def test_work_of_hrnet():
    work = model.pose(model.Paper(pose_images=3, pose_k=2))
    channels = sum(work.norms) // 8
    assert len(work.norms) == 292 and work.gradient == 4 * (28_536_113 + 2 * channels)
    assert work.multiply_adds / 9 / 2**30 == pytest.approx(7.12, abs=0.01)
    assert (work.units, work.hard) == (51, 6)


def test_work_of_fast_rcnn():
    work = model.detection(
        model.Paper(detection_images=2, detection_size=(64, 32), proposals=10, detection_k=3)
    )
    widths = [[3, 64, 64], [64, 128, 128], [128, *3 * [256]], [256, *3 * [512]], [512, *3 * [512]]]
    trunk = sum(
        9 * before * after * 64 * 32 // 4**block
        for block, channels in enumerate(widths)
        for before, after in zip(channels, channels[1:], strict=False)
    )
    head = 25_088 * 4096 + 4096 * 4096 + 4096 * 21 + 4096 * 80
    assert work.multiply_adds == 3 * 2 * trunk + (20 + 3 * 6) * head
    assert work.gradient == 4 * 134_674_341 and work.norms == ()
    assert (work.units, work.hard) == (20, 6)


def test_the_tables_on_paper(capsys):
    assert benchmark.main(benchmark.Config(parts=("paper",), paper=model.Paper(devices=(8, 16)))) == 0
    text = capsys.readouterr().out
    for words in (
        "HRNet-W32 256x192 on TPU v5p",
        "Fast R-CNN VGG16 600x1000 on H100",
        "114.4 MB",
        "peak 459.0",
    ):
        assert words in text, words
    # 16 crops of 17 keypoints a device are 272 units: with k growing it sends all, 4 bytes each.
    assert "1,024, grows" in text and "1.09" in text and "128, fixed" in text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sizes.image-size", "48"], "--sizes.image-size 48 must be a multiple of 32"),
        (["--sizes.images", "0"], "--sizes.images 0 must be at least 1"),
        (["--sizes.k", "18"], "--sizes.k 18: at most 17"),
        (["--num-devices", "0"], "--num-devices and --processes must be 1 or more"),
        (["--paper.devices", "8", "12"], "--paper.devices 12: .* whole groups of 8"),
        (["--paper.devices", "0"], "--paper.devices 0"),
        (["--paper.pose-k", "18"], "--paper.pose-k 18: there are 17"),
        (["--paper.detection-k", "0"], "--paper.detection-k 0 must be at least 1"),
        (["--paper.detection-k", "3000"], "--paper.detection-k 3000: more than"),
        (["--paper.detection-size", "8", "900"], "both sides must be 16 or more"),
        (["--tpu.utilisation", "1.5"], "--tpu.utilisation 1.5 is a share"),
        (["--gpu.slow", "0"], "--gpu.slow 0.0 must be above 0"),
        (["--gpu.fast-hop", "-1"], "--gpu.fast-hop -1.0 must be at least 0"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main(tyro.cli(benchmark.Config, args=flags))


def test_the_command_says_one_line_of_a_wrong_flag():
    run = subprocess.run(
        [sys.executable, benchmark.__file__, "--sizes.k", "99"], capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == "error: --sizes.k 99: at most 17, half of a device's units: lower it\n"


@pytest.mark.slow
@needs_devices
def test_pose_with_the_batch_statistics_of_each_device():
    pose = _measure("pose_own_norm")
    made = claims.checks([pose])
    assert len(made) == 5 and all(check.against == [] for check in made)
    assert pose.devices == 8 and pose.processes == 1 and pose.groups == [8]
    # Four bytes of each number; hrnet's equal biases travel once.
    assert pose.parameters == 4 * (2_624_673 + 5568) and pose.equal > 0
    assert pose.shares["gradient"].sent == pose.parameters - pose.equal
    assert pose.shares["gradient"].collectives == 1
    # loss, mse, fraction_kept, loss_captured, entropy, unit_rate[17]; and the sums of `stats`.
    assert pose.shares["metrics"].sent == 4 * (5 + 17 + 2 * 17 + 2)
    assert claims.from_json(json.loads(json.dumps(pose._asdict()))) == pose
    failed = [check for check in claims.checks([_tampered(pose, "metrics", collectives=5)]) if check.against]
    assert ["at most 4" in check.claim for check in failed] == [True]


@pytest.mark.slow
@needs_devices
def test_claims_hold_for_the_other_steps():
    measured = [
        _measure("pose", images=2),
        _measure("pose", "images", images=4),
        _measure("pose_global", images=2, k=16),
        _measure("pose_global", "images", images=4, k=16),
        _measure("pose_global", "k", images=2, k=32),
    ]
    made = claims.checks(measured)
    assert len(made) == 8 and all(check.against == [] for check in made)
    assert [one.shares["mining"].sent for one in measured] == [0, 0, 64, 64, 128]


@pytest.mark.slow
def test_devices_and_processes_send_the_same():
    """The whole command, at its smallest."""
    command = [
        sys.executable,
        benchmark.__file__,
        "--parts",
        "devices",
        "processes",
        "--num-devices",
        "1",
        "2",
    ]
    command += ["--programs", "detection_global", "--process-programs", "detection_global", "--no-vary"]
    command += ["--processes", "1", "1", "2", "1", "--sizes.image-size", "32", "--sizes.rounds", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [line for line in run.stdout.splitlines() if line.startswith("│ detection_global")]
    counted = [[cell.strip() for cell in row.split("│")[2:4]] for row in rows]
    assert counted == [["1", "1"], ["1", "2"], ["1", "1"], ["2", "2"]]
    assert all("3,773,440 B" in row and "64" in row for row in rows)
    assert "no: " not in run.stdout


@pytest.mark.slow
def test_a_worker_that_fails_is_one_line(tmp_path, monkeypatch):
    # More regions wanted than there are of the only image: found by the worker.
    config = benchmark.Config(
        programs=("detection_global",), sizes=dataclasses.replace(TINY, k=10**6), num_devices=(1,)
    )
    with pytest.raises(ValueError, match="a worker stopped with status 2: error: .*k=1000000 > N=20"):
        benchmark.start_worker(config, tmp_path, devices=1, processes=None, vary=False)
