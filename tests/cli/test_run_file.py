"""`train --config FILE`: a run is trained once more by the file beside it, and flags come before what stands there."""

import pytest
import yaml
from command_line import spikegpt
from runs import weights_of

from spikegpt.checkpoint.run import configs_of, read_run_config
from spikegpt.checkpoint.run_file import read_run_file
from spikegpt.cli import training
from spikegpt.common.errors import SpikegptError

SMALL = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16", "--steps", "4", "--batch-size", "2"]
SMALL += ["--warmup-steps", "1", "--eval-tokens", "200"]


def options_of(*words):
    """What `train` makes of its words, before it trains."""
    start, _ = training.parse(training.Start, "train", list(words), return_unknown_args=True, add_help=False)
    return training._parse(list(words), start, training._train_defaults(start))


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_run_is_repeated_byte_for_byte_by_the_file_beside_it(tmp_path, cache):
    more = ["--cache", cache, "--threads", "1", "--precision", "no"]
    spikegpt("train", *SMALL, *more, "--levels", "3", "--out", tmp_path / "one")
    again = (tmp_path / "one" / "run.yaml").read_text().splitlines()[0]
    assert again == f"# spikegpt train --config {tmp_path}/one/run.yaml --out {tmp_path}/one-again"
    spikegpt(*again.split()[2:], "--cache", cache)
    one, other = (configs_of(run, read_run_config(run)) for run in (tmp_path / "one", tmp_path / "one-again"))
    assert one == other
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "one-again")


def test_flags_come_before_the_file_and_the_file_before_the_preset(written):
    file = written(
        "preset: small\nmodel: {n_embd: 64, neuron: {levels: 3}}\ntrain: {lr: 1e-3, steps: 7, precision: no}\n"
    )
    options = options_of("--config", file, "--steps", "9")
    assert (options.model.n_layer, options.model.n_embd, options.model.neuron.levels) == (6, 64, 3)
    assert (options.train.steps, options.train.lr, options.train.precision) == (9, 0.001, "no")
    assert options.train.muon_lr == 0.03
    assert training._name_of(options) == "recipe-input"


def test_another_block_by_a_flag_has_its_own_neuron_and_no_teacher_of_its_own(written):
    file = written("model: {spiking: input, neuron: {levels: 3}}\ntrain: {self_teacher: 1.0}\n")
    published = options_of("--config", file, "--spiking", "output")
    assert published.model.neuron == training.ModelConfig(spiking="output").neuron
    assert options_of("--config", file, "--teacher", "runs/other").train.self_teacher == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: {n_embd: 64}", "has no key 'modle'; did you mean 'model'?"),
        ("model: {n_emb: 64}", "recipe.yaml: ModelConfig has no key 'n_emb'; did you mean 'n_embd'?"),
        ("model: {neuron: {level: 3}}", "NeuronConfig has no key 'level'; did you mean 'levels'?"),
        ("train: {steps: many}", "steps must be a whole number, got 'many'"),
        ("train: {steps: 0}", "steps must be a whole number from 1"),
        ("train: [steps]", "train must be settings"),
        ("train: {steps: 3, steps: 4}", "the key 'steps' stands there twice"),
        ("preset: huge", "preset is 'huge'; known: tiny"),
        ("- model", "holds a list; wanted are the keys model and train"),
        ("model: {", "is no YAML"),
        ("model: !!python/object/apply:os.getcwd []", "is no YAML: could not determine a constructor"),
    ],
)
def test_what_does_not_belong_into_the_file_is_refused_in_one_line(text, said, written):
    done = spikegpt("train", "--config", written(text), check=False)
    assert done.returncode != 0 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpikegptError, match=r"cannot read .*none\.yaml"):
        read_run_file(tmp_path / "none.yaml")


def test_a_resumed_run_has_its_own_configuration(trained):
    done = spikegpt("train", "--resume", trained, "--config", trained / "run.yaml", check=False)
    assert "leave out --config" in done.stderr


def test_the_file_beside_a_run_is_yaml_for_any_reader(trained):
    values = yaml.safe_load((trained / "run.yaml").read_text())
    kept = read_run_config(trained)
    assert values["train"]["precision"] == "no"
    assert (
        training.TrainConfig.from_dict(values["train"]).to_dict()
        == training.TrainConfig.from_dict(kept["train"]).to_dict()
    )
    assert training.ModelConfig.from_dict(values["model"]) == training.ModelConfig.from_dict(kept["model"])
