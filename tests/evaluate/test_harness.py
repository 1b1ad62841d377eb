"""Our model in lm_eval: its answers against plain forward passes, and a task through the real command line."""

import json
import os
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from questions import QUESTIONS, TASK
from runs import BLOCKS

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from spikegpt.evaluate.harness import END_OF_TEXT, SpikeGPTHarness
from spikegpt.generate.stream import generate
from spikegpt.model.network import SpikeGPT


def requests_of(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def harness(trained):
    return SpikeGPTHarness(str(trained), batch_size=3)


def plain(model, context: bytes, continuation: bytes) -> tuple[float, bool]:
    ids = torch.tensor(list(context + continuation))
    with torch.no_grad():
        logits = model(ids[None]).logits[0, len(context) - 1 : -1].double()
    targets = ids[len(context) :]
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item(), bool(
        (logits.argmax(-1) == targets).all()
    )


def test_log_probabilities_are_those_of_a_plain_forward_pass(harness):
    pairs = [(f"Question: {q['question']}\nAnswer:", f" {choice}") for q in QUESTIONS for choice in q["choices"]]
    found = harness.loglikelihood(requests_of(*pairs), disable_tqdm=True)
    wanted = [plain(harness.model, context.encode(), continuation.encode()) for context, continuation in pairs]
    assert [score for score, _ in found] == pytest.approx(
        [score for score, _ in wanted], abs=1e-5 * max(-score for score, _ in wanted)
    )
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in wanted]


def test_another_generation_is_scored_as_by_its_forward_pass(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path, SpikeGPT(ModelConfig(n_layer=2, n_embd=16, **BLOCKS["rwkv7"])), ByteTokenizer())
    harness = SpikeGPTHarness(str(tmp_path), batch_size=2)
    pairs = [("It was", " the best"), ("", "of times"), ("It was the", " worst")]
    found = harness.loglikelihood(requests_of(*pairs), disable_tqdm=True)
    wanted = [plain(harness.model, context.encode() or b"\n", more.encode())[0] for context, more in pairs]
    assert [score for score, _ in found] == pytest.approx(wanted, abs=1e-3)


def test_a_text_without_context_is_read_after_a_newline(harness):
    ((score, _),) = harness.loglikelihood(requests_of(("", "The end")), disable_tqdm=True)
    assert score == pytest.approx(plain(harness.model, b"\n", b"The end")[0], abs=1e-4)
    assert harness.get_model_info()["prefix"] == "\n"


@pytest.mark.parametrize(
    "context, continuation, text",
    [
        (" ", "x", " x"),
        ("\n", "x", "\nx"),
        ("\t \n", "x", "\t \nx"),
        ("", "\nx", "\nx"),
        ("", "\n", "\n"),
        (" ", "", " "),
    ],
)
def test_a_context_of_nothing_but_spaces_is_none_and_they_are_scored(harness, context, continuation, text):
    ((score, _),) = harness.loglikelihood(requests_of((context, continuation)), disable_tqdm=True)
    assert score == pytest.approx(plain(harness.model, b"\n", text.encode())[0], abs=1e-4)


def test_nothing_after_nothing_is_certain(harness):
    pairs = requests_of(("", ""), ("The", ""))
    assert harness.loglikelihood(pairs, disable_tqdm=True) == [(0.0, True), (0.0, True)]


def test_letters_of_several_bytes_across_the_boundary_are_whole(harness):
    pairs = [("Brü", "cke 語"), ("👍", "🏽")]
    found = harness.loglikelihood(requests_of(*pairs), disable_tqdm=True)
    wanted = [plain(harness.model, context.encode(), text.encode())[0] for context, text in pairs]
    assert [score for score, _ in found] == pytest.approx(wanted, abs=1e-4)


SAMPLED = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8, "until": []}


def test_repeats_are_so_many_draws_whatever_the_batch(harness, monkeypatch):
    requests = requests_of(*[("The ", SAMPLED)] * 6, ("x", {"max_gen_toks": 3}), *[("The ", SAMPLED)] * 2)
    found = []
    for size in (1, 4, 9):
        monkeypatch.setattr(harness, "batch_size", size)
        found.append(harness.generate_until(requests, disable_tqdm=True))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 9


def test_draws_do_not_come_back_from_a_cache(harness, monkeypatch):
    kept = []
    monkeypatch.setattr(harness.cache_hook, "add_partial", lambda *which: kept.append(which[1][0]))
    harness.generate_until(requests_of(("a", SAMPLED), ("b", {"max_gen_toks": 2})), disable_tqdm=True)
    assert kept == ["b"]


@pytest.mark.parametrize("context", ["", " ", "\n"])
def test_a_blank_context_is_continued(harness, context):
    found = harness.generate_until(requests_of((context, {"max_gen_toks": 5})), disable_tqdm=True)
    sampling = SamplingConfig(max_tokens=5, temperature=0)
    assert found == generate(harness.model, harness.tokenizer, [context or "\n"], sampling)


@pytest.mark.parametrize("options", [{"until": [5]}, {"temperature": None}])
def test_an_option_of_another_type_is_named(harness, options):
    with pytest.raises(SpikegptError, match="generation_kwargs"):
        harness.generate_until(requests_of(("a", options)), disable_tqdm=True)


def test_rolling_reads_a_whole_text_longer_than_any_window_with_carried_state(harness):
    text = "Der Zug fährt über die Brücke. " * 60
    assert len(text) > 100 * harness.model.config.ctx_len
    found = harness.loglikelihood_rolling(requests_of((text,), ("ab",), ("",)), disable_tqdm=True)
    assert found[0] == pytest.approx(plain(harness.model, b"\n", text.encode())[0], rel=1e-5)
    assert found[1] == pytest.approx(plain(harness.model, b"\n", b"ab")[0], rel=1e-5)
    assert found[2] == 0.0


def test_generation_is_greedy_and_ends_before_a_stop_string(harness):
    prompts = ["The ", "if x", "class A:"]
    greedy = generate(harness.model, harness.tokenizer, prompts, SamplingConfig(max_tokens=12, temperature=0))
    options = {"until": ["\n\n"], "max_gen_toks": 12}
    found = harness.generate_until(requests_of(*((prompt, options) for prompt in prompts)), disable_tqdm=True)
    assert found == [text.split("\n\n")[0] for text in greedy]
    stop = greedy[0][3]
    (stopped,) = harness.generate_until(requests_of(("The ", {"until": stop, "max_gen_toks": 12})), disable_tqdm=True)
    assert stopped == greedy[0].split(stop)[0]


def test_sampling_from_all_tokens_when_asked(harness):
    assert harness._sampling({"do_sample": True, "max_gen_toks": 3}) == SamplingConfig(
        max_tokens=3, temperature=1.0, top_p=1.0
    )
    assert harness._sampling({"until": "x"}) == SamplingConfig(max_tokens=256, temperature=0.0, top_p=1.0, stop=("x",))


def test_an_unknown_option_of_generation_is_named(harness):
    with pytest.raises(SpikegptError, match="num_beams"):
        harness.generate_until(requests_of(("a", {"num_beams": 4})), disable_tqdm=True)


@pytest.fixture
def bpe_run(tmp_path):
    """An untrained model with a BPE that has <|endoftext|>."""
    values = BPETokenizer.train(b"the cat sat on the mat " * 30, 300).to_json()
    end = len(values["model"]["vocab"])
    values["model"]["vocab"][END_OF_TEXT] = end
    special = {"id": end, "content": END_OF_TEXT, "special": True}
    values["added_tokens"] = [{**special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}]
    tokenizer = BPETokenizer(values)
    torch.manual_seed(0)
    save_model(tmp_path, SpikeGPT(ModelConfig(n_layer=1, n_embd=16, vocab_size=tokenizer.vocab_size)), tokenizer)
    return tmp_path


def test_end_of_text_stands_before_a_text_where_the_tokenizer_has_it(bpe_run):
    harness = SpikeGPTHarness(str(bpe_run))
    ids = torch.tensor([harness.prefix_token_id, *harness.tok_encode("the cat")])
    with torch.no_grad():
        wanted = -torch.nn.functional.cross_entropy(
            harness.model(ids[None]).logits[0, :-1], ids[1:], reduction="sum"
        ).item()
    assert harness.get_model_info()["prefix"] == END_OF_TEXT
    assert harness.loglikelihood_rolling(requests_of(("the cat",)), disable_tqdm=True) == [
        pytest.approx(wanted, abs=1e-5)
    ]
    assert harness._sampling({"until": ["."]}).stop == (".", END_OF_TEXT)


def test_a_token_across_the_boundary_is_read_on_its_own_side(bpe_run):
    harness = SpikeGPTHarness(str(bpe_run))
    # "the" is one token
    before, after = harness._encode_pair("th", "e cat")
    assert len(harness.tok_encode("the")) == 1
    assert harness.tokenizer.decode(before) + harness.tokenizer.decode(after) == b"the cat"
    assert harness._encode_pair("the ", "cat") == (harness.tok_encode("the"), harness.tok_encode(" cat"))


def test_a_prefix_of_several_tokens_or_none_is_refused(trained, tmp_path):
    with pytest.raises(SpikegptError, match=r"the prefix 'ab' has 2 tokens; .*prefix=TEXT"):
        SpikeGPTHarness(str(trained), prefix="ab")
    save_model(tmp_path, SpikeGPT(ModelConfig(n_layer=1, n_embd=8, vocab_size=3)), CharTokenizer("abc"))
    with pytest.raises(SpikegptError, match=r"the prefix '\\n' cannot be encoded"):
        SpikeGPTHarness(str(tmp_path))
    harness = SpikeGPTHarness(str(tmp_path), prefix="c")
    with pytest.raises(SpikegptError, match="character 'z'"):
        harness.loglikelihood(requests_of(("a", "z")), disable_tqdm=True)


@pytest.mark.parametrize("size", ["0", "many", "auto:4"])
def test_a_batch_size_that_is_no_number_is_refused(trained, size):
    with pytest.raises(SpikegptError, match="batch_size"):
        SpikeGPTHarness(str(trained), batch_size=size)


def test_a_device_among_the_models_own_arguments_goes_before_lm_evals(trained):
    ours = {"pretrained": str(trained), "device": "cpu"}
    made = SpikeGPTHarness.create_from_arg_obj(ours, {"device": "cuda:7", "batch_size": 2, "max_batch_size": None})
    assert (made.device, made.batch_size) == (torch.device("cpu"), 2)


def test_what_lm_eval_asks_for_by_default_is_whatever_is_there(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = SpikeGPTHarness.create_from_arg_string(f"pretrained={trained}", {"device": "cuda:0", "batch_size": 1})
    assert made.device == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:9"])
def test_a_device_that_is_not_there_is_refused(trained, device):
    with pytest.raises(SpikegptError, match=f"{device}.*available: cpu"):
        SpikeGPTHarness.create_from_arg_string(f"pretrained={trained},device={device}")


@pytest.mark.slow
def test_lm_eval_runs_a_multiple_choice_task_from_local_files(trained, tmp_path):
    questions, tasks, out = tmp_path / "questions.jsonl", tmp_path / "tasks", tmp_path / "out"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    tasks.mkdir()
    (tasks / "questions.yaml").write_text(TASK.replace("FILE", str(questions)))
    options = {
        "--model_args": f"pretrained={trained}",
        "--tasks": "python_questions",
        "--include_path": tasks,
        "--output_path": out,
    }
    command = [
        "-m",
        "spikegpt",
        "lm-eval",
        "--model",
        "spikegpt",
        "--batch_size",
        "4",
        *(part for pair in options.items() for part in pair),
    ]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = processes.run([sys.executable, *map(str, command)], env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(out.rglob("results_*.json")).read_text())
    model, _ = load_model(trained)
    right = right_per_byte = 0
    for question in QUESTIONS:
        context = f"Question: {question['question']}\nAnswer:".encode()
        scores = [plain(model, context, f" {choice}".encode())[0] for choice in question["choices"]]
        per_byte = [score / len(choice) for score, choice in zip(scores, question["choices"], strict=True)]
        right += scores.index(max(scores)) == question["label"]
        right_per_byte += per_byte.index(max(per_byte)) == question["label"]
    assert results["results"]["python_questions"]["acc,none"] == right / len(QUESTIONS)
    assert results["results"]["python_questions"]["acc_norm,none"] == right_per_byte / len(QUESTIONS)
    assert results["config"]["prefix"] == "\n"


def test_the_entry_point_for_later_versions_of_lm_eval_names_the_class():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, name = project["project"]["entry-points"]["lm_eval.models"]["spikegpt"].split(":")
    assert (module, name) == (SpikeGPTHarness.__module__, SpikeGPTHarness.__name__)


def test_a_run_that_is_none_is_named(tmp_path):
    with pytest.raises(SpikegptError, match="nothing is not the folder of a run"):
        SpikeGPTHarness(str(tmp_path / "nothing"))


def test_without_lm_eval_the_extra_is_named():
    code = "import sys; sys.modules['lm_eval'] = None; import spikegpt.cli.verbs as m; sys.exit(m.main())"
    done = processes.run([sys.executable, "-c", code, "lm-eval", "--tasks", "x"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: lm_eval cannot be imported") and done.stderr.endswith(
        "install it with: pip install 'spikegpt[eval]'\n"
    )
