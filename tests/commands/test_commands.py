import argparse
import json
import subprocess
import sys

import pytest
from detectron2.engine import default_argument_parser

from groupdetr_d2.analysis.step_cost import count_flops
from groupdetr_d2.checkpoint import converting
from groupdetr_d2.commands import build_parser, commands_by_name, convert, env, train
from groupdetr_d2.commands import run as main
from groupdetr_d2.commands.arguments import overrides_of
from tests.conftest import ROOT, SHRINK, SMALL_BACKBONE, small_config

CONFIG = "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"


def test_commands_are_listed(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in ("benchmark", "convert", "env", "predict"):
        assert f"  {name}" in listed
    with pytest.raises(SystemExit) as end:
        main(["unheard-of"])
    assert end.value.code == 2


def test_env_prints_versions(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert "torch " in printed and "detectron2" in printed and "to mend" not in printed


def test_env_names_what_is_missing_or_too_old_and_the_remedy(capsys, monkeypatch):
    monkeypatch.setattr(
        env, "NEEDED", [("scipy", "scipy", "999.0"), ("not_there", "not-there", "1.2")]
    )
    assert main(["env"]) == 1
    printed = capsys.readouterr().out
    assert "too old: at least 999.0" in printed and "pip install 'scipy>=999.0'" in printed
    assert "cannot be imported" in printed and "pip install 'not-there>=1.2'" in printed
    version, mend = env.inspect_package("detectron2_absent", "x", "1")
    assert "ModuleNotFoundError" in version and mend


def test_env_works_where_detectron2_is_missing():
    """Its parts cannot be imported then, and say what to do; so do commands."""
    blocked = "import sys; sys.modules['detectron2'] = None; "
    as_main = "import runpy; sys.argv = ['x', 'env']; "
    program = f"{blocked}{as_main}runpy.run_module('groupdetr_d2', None, '__main__')"
    run = [sys.executable, "-W", "ignore", "-c"]
    done = subprocess.run([*run, program], capture_output=True, text=True, cwd=ROOT)
    assert "detectron2" in done.stdout and "--require-hashes" in done.stdout
    lines = [
        "import sys; sys.modules['detectron2'] = None",
        "try: from groupdetr_d2 import Predictor",
        "except ImportError as error: print(error)",
        "from groupdetr_d2 import commands; commands.run(['strip', 'a', 'b'])",
    ]
    done = subprocess.run([*run, "\n".join(lines)], capture_output=True, text=True, cwd=ROOT)
    assert "python -m groupdetr_d2 env" in done.stdout
    assert done.returncode == 1 and "groupdetr_d2 env" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_flops_grow_linearly_with_k():
    def flops(k):
        return count_flops(small_config(CONFIG, k), (64, 96), 2, num_objects=3, backward=True)

    one, two, three = flops(1), flops(2), flops(3)
    assert two > one and three - two == two - one


@pytest.mark.parametrize("mode", [[], ["--evaluate"]])
def test_benchmark_prints_one_row_a_k(capsys, mode, warm_measuring):
    opts = [str(x) for x in (*SHRINK, *SMALL_BACKBONE)]
    sizes = ["--image-size", "64", "96", "--steps", "2", "--json", "--device", "cpu"]
    main(["benchmark", "--config-file", CONFIG, "--num-groups", "1", "3", *sizes, *mode, *opts])
    one, three = json.loads(capsys.readouterr().out)
    assert (one["K"], three["K"]) == (1, 3) and one["seconds"] > 0 and one["peak_mib"] > 0
    if mode:
        assert one["flops"] == three["flops"]  # inference knows nothing of groups
    else:
        assert three["flops"] > one["flops"]
        parts = {"backbone", "encoder", "decoder", "matching", "losses", "backward", "update"}
        assert parts == set(one["shares"]) and 0.7 < sum(one["shares"].values()) <= 1.01


def test_rounds_of_a_benchmark_take_turns(capsys, monkeypatch):
    """The median is of the steps of all rounds, not of the rounds' medians."""
    from groupdetr_d2.analysis import benchmark

    steps = {1: iter([[1.0, 5.0], [2.0, 3.0]]), 3: iter([[8.0, 8.0], [4.0, 4.0]])}
    order = []

    def measured(function, args, k):
        order.append(k)
        shares = {"backbone": len(order) / 10}
        return {"K": k, "flops": k, "durations": next(steps[k]), "shares": shares, "peak_mib": k}

    monkeypatch.setattr(benchmark, "run_apart", measured)
    rounds = ["--num-groups", "1", "3", "--rounds", "2", "--json"]
    main(["benchmark", "--config-file", CONFIG, *rounds])
    one, three = json.loads(capsys.readouterr().out)
    assert order == [1, 3, 1, 3]
    assert (one["seconds"], one["fastest"], one["slowest"]) == (2.5, 1, 5)
    assert three["seconds"] == 6 and three["shares"]["backbone"] == pytest.approx(0.3)


def test_a_benchmark_of_nothing_is_refused():
    with pytest.raises(SystemExit, match="--rounds has to be at least 1"):
        main(["benchmark", "--config-file", CONFIG, "--rounds", "0"])


def test_predict_lists_files_and_folders(tmp_path):
    from groupdetr_d2.inference.prediction import list_images

    for name in ("b.png", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    found = list_images([str(tmp_path), str(tmp_path / "b.png")])
    assert [p.name for p in found] == ["a.jpg", "b.png", "b.png"]


def test_predict_names_a_checkpoint_it_cannot_use(tmp_path):
    with pytest.raises(SystemExit, match="gone.pth does not exist"):
        main(["predict", "--weights", str(tmp_path / "gone.pth"), str(ROOT / "README.md")])


def test_help_needs_no_torch():
    """PyTorch and Detectron2 take seconds to import, which a list of commands does not need."""
    program = (
        "import sys; from groupdetr_d2.commands import build_parser; build_parser().format_help(); "
        "assert not {'torch', 'detectron2', 'numpy', 'cv2'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", commands_by_name())
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and f"usage: groupdetr-d2 {name}" in capsys.readouterr().out


def test_train_takes_what_detectron2_takes():
    theirs = {a.dest: a for a in default_argument_parser()._actions}
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    ours = {a.dest: a for a in parser._actions}
    for name, action in theirs.items():
        assert ours[name].option_strings == action.option_strings
        assert (ours[name].default or None) == (action.default or None) or name == "opts"
    assert set(ours) - set(theirs) == {*train.DATA_FLAGS, "trust_checkpoint", "dry_run"}


def parse(*words):
    args = build_parser().parse_args(words)
    return args, overrides_of(args)


def test_overrides_may_follow_a_list():
    args, opts = parse("benchmark", "--config-file", "f", "--num-groups", "1", "11", "SEED", "3")
    assert args.num_groups == [1, 11] and opts == ["SEED", "3"]
    words = ["--num-groups", "1", "MODEL.DETR.DROPOUT", "0.0"]
    args, opts = parse("analyze", "memory", "--config-file", "a", "b", *words)
    assert args.config_file == ["a", "b"] and args.num_groups == [1]
    assert opts == ["MODEL.DETR.DROPOUT", "0.0"]
    args, opts = parse("predict", "--weights", "w", "a.jpg", "B.JPG", "TEST.AUG.ENABLED", "True")
    assert args.images == ["a.jpg", "B.JPG"] and opts == ["TEST.AUG.ENABLED", "True"]
    args, opts = parse("predict", "--weights", "w", "a.jpg", "--opts", "SEED", "1")
    assert args.images == ["a.jpg"] and opts == ["SEED", "1"]
    # a key may be the value of an option
    key = ("--key", "MODEL.DETR.NUM_GROUPS", "--values", "1", "3", "--results", "r.json")
    args, opts = parse("analyze", "sweep", *key, "--seeds", "0", "1", "SOLVER.MAX_ITER", "8")
    assert args.values == ["1", "3"] and args.seeds == [0, 1] and len(opts) == 2


def test_a_word_among_numbers_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("benchmark", "--config-file", "f", "--num-groups", "1", "many")
    assert "argument --num-groups: " in capsys.readouterr().err


def test_a_shell_completes_commands_and_options(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    lines = [f"source {script}", "COMP_WORDS=(groupdetr-d2 pre)", "COMP_CWORD=1"]
    lines += ["$(complete -p groupdetr-d2 | sed 's/.*-F //; s/ .*//')", 'echo "${COMPREPLY[@]}"']
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout.split() == ["predict", "prepare-nuscenes", "prepare-objects365"], done


def test_the_sources_of_convert_are_those_that_have_a_converter():
    assert set(convert.SOURCES) == {*converting.SOURCES, "vit"}


def test_a_command_prints_no_warnings_of_libraries(tmp_path):
    """Detectron2 and PyTorch warn their developers at every import."""
    command = [sys.executable, "-m", "groupdetr_d2", "strip", "gone.pth", str(tmp_path / "out.pth")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "error: the checkpoint gone.pth does not exist\n" and done.returncode == 1
