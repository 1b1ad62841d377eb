"""The command line: one verb per function; parse, call, print. What a verb takes: options.py.

`train` has a file of its own, training.py, so have `measure` and `compare`, measuring.py, `context`, context.py,
and `serve`, serving.py.
"""

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from ..common.errors import SpikegptError
from ..common.printing import command, one_line, printable
from ..common.version import __version__
from ..config import PRESETS, ModelConfig
from ..config.effects import idle_in_blocks
from .beginning import check_runs, use_threads
from .chip import simulate_verb
from .completion import completion_script
from .context import context_verb
from .ending import ended
from .idle import (
    given_of,
    idle_in_classifying,
    idle_in_data,
    idle_in_reading,
    warn_of_idle_options,
    warn_of_idle_sampling,
)
from .measuring import compare_verb, measure_verb
from .options import (
    Data,
    Doctor,
    Evaluate,
    Export,
    FinetuneClassify,
    Generate,
    Import,
    Info,
    Listing,
)
from .parsing import HELP, UsageError, parse
from .pictures import raster_verb
from .serving import serve_verb
from .tables import check_table, write_table
from .training import convert_verb, train_verb

USAGE = f"""spikegpt {__version__}: train spiking language models, and compare them with their dense RWKV twin

  spikegpt train                  train a spike-driven model (--preset {" | ".join(PRESETS)})
  spikegpt train --spiking none   train its dense twin; --spiking output: the published block
  spikegpt train --from RUN       go on from trained weights, of the same block or dense ones in another
  spikegpt train --resume RUN     continue a run that was broken off
  spikegpt convert RUN            turn a dense model into a spike-driven one, healed while the dense one teaches it
  spikegpt data [NAME]            list corpora, or fetch one: enwik8, wikitext-103, ..., OWNER/NAME of Hugging Face
  spikegpt generate RUN "Once"    write text, token by token
  spikegpt serve [RUN...]         a live page: spikes as they fire, beside the twin; OpenAI's API for many clients
  spikegpt evaluate RUN...        bits per byte, perplexities, firing rates, of runs side by side; --last-word FILE
  spikegpt lm-eval ...            EleutherAI's lm_eval, which then knows: --model spikegpt --model_args pretrained=RUN
  spikegpt finetune-classify RUN  SST-2, SST-5, MR, Subj or your own TSV, CSV, JSONL files, with seeds; the twin beside
  spikegpt measure RUN            count what a run computes, estimate its energy, write RUN/report/report.html
  spikegpt compare RUN --twin     the same beside its dense twin, which is found or trained; or: compare RUN RUN...
  spikegpt context RUN...         what a text's memory costs and buys: bytes, operations, bits; by length and --policy
  spikegpt simulate RUN           a text in the whole numbers of a chip (--target generic | loihi2), and what fits there
  spikegpt raster RUN "Once"      the spikes of a text as a picture (-o spikes.png) or a film (.gif, .webp)
  spikegpt import FILE            published SpikeGPT or RWKV-4 weights (.pth, Hugging Face folder) become a run
  spikegpt export RUN FILE        and back; FILE.nir: a graph for chips
  spikegpt list [PATH]            the models that come along, which go by name wherever a RUN is taken; or runs in PATH
  spikegpt info RUN|PRESET        sizes and configuration
  spikegpt doctor                 what is installed, which kernels run here, how fast
  spikegpt completion bash|zsh    what your shell completes: source <(spikegpt completion bash)

spikegpt VERB --help shows the flags of a verb."""


def data_verb(arguments: list[str]) -> int:
    options = parse(Data, "data", arguments)
    from ..data import corpora

    name, is_recall = options.name, options.name == corpora.RECALL
    warn_of_idle_options(options, idle_in_data(options, name in corpora.CORPORA, is_recall))
    if name is None:
        print(json.dumps(list(corpora.CORPORA)) if options.json else corpora.listing())
        return 0
    drawn = {"pairs": options.pairs, "letters": options.letters, "seed": options.seed, "size": options.limit_bytes}
    if options.binidx is not None:
        source = corpora.recall_corpus(cache_dir=options.cache, **drawn) if is_recall else name
        return _write_tokens(str(source), options.binidx, options)
    if is_recall:
        folder = corpora.recall_corpus(options.out, options.cache, **drawn)
    else:
        folder = corpora.obtain(
            name,
            options.out,
            options.cache,
            column=options.column,
            config=options.config,
            split=options.split,
            separator=options.separator.replace("\\n", "\n").replace("\\t", "\t"),
            limit_bytes=options.limit_bytes,
        )
    print(
        json.dumps({"folder": str(folder)})
        if options.json
        else f"{one_line(folder)}\n  {command('train', '--data', folder)}"
    )
    return 0


def _write_tokens(name: str, prefix: Path, options: Data) -> int:
    from ..data.corpora import CORPORA, named_corpus
    from ..data.tokenizers import ByteTokenizer, load_tokenizer
    from ..data.tokens.pretokenised import export_binidx

    source = named_corpus(name, cache_dir=options.cache) if name in CORPORA else name
    tokenizer = ByteTokenizer() if options.tokenizer == "byte" else load_tokenizer(options.tokenizer)
    written = export_binidx(
        source,
        tokenizer,
        prefix,
        text_column=options.column,
        end_token=options.end_token,
        processes=options.processes,
    )
    facts = {"tokens_file": str(written.path), "tokens": len(written.tokens), "documents": len(written.starts)}
    _show(facts, options.json)
    return 0


def generate_verb(arguments: list[str]) -> int:
    options = parse(OmitArgPrefixes[Generate], "generate", arguments)
    from ..checkpoint.weights import load_model
    from ..generate.stream import stream

    use_threads(options.threads)
    warn_of_idle_sampling(options)
    model, tokenizer = load_model(options.run, device=options.device)
    prompts = list(options.prompts) or ["\n"]
    texts = [""] * len(prompts)
    alone = len(prompts) == 1 and not options.json
    if alone:
        print(printable(prompts[0]), end="", flush=True)
    for piece in stream(model, tokenizer, prompts, options.sampling):
        texts[piece.prompt] += piece.text
        if alone:
            print(printable(piece.text), end="", flush=True)
    if options.json:
        print(json.dumps([{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]))
    elif alone:
        print()
    else:
        for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            print(f"--- {index + 1} ---\n{printable(prompt + text)}")
    return 0


def evaluate_verb(arguments: list[str]) -> int:
    options = parse(Evaluate, "evaluate", arguments)
    from ..evaluate import last_word
    from ..evaluate.runs import cells, evaluate_run, headlines, table

    if not options.runs:
        raise UsageError("no run given; spikegpt evaluate RUN [RUN ...]")
    if options.last_word is not None:
        others = ("file", "tokens", "ctx_len", "stride", "keep_membrane", "split")
        given = given_of(options, others)
        if given:
            raise UsageError(f"--last-word reads whole passages from its own file; leave out {', '.join(given)}")
    warn_of_idle_options(options, idle_in_reading(options))
    if options.out is not None:
        check_table(options.out)
    use_threads(options.threads)
    check_runs(options.runs)
    if options.last_word is not None:
        words = [last_word.evaluate_last_words(run, options.last_word, options.device) for run in options.runs]
        if options.out is not None:
            write_table(options.out, last_word.cells(words), words)
        print(json.dumps(words) if options.json else last_word.table(words))
        return 0
    results = [
        evaluate_run(
            run,
            split=options.split,
            file=options.file,
            limit=options.tokens,
            ctx_len=options.ctx_len,
            stride=options.stride,
            keep_membrane=options.keep_membrane,
            cache=options.cache,
            device=options.device,
        )
        for run in options.runs
    ]
    if options.out is not None:
        write_table(options.out, cells(results, options.layers), results)
    print(json.dumps(results) if options.json else f"{headlines(results)}\n\n{table(results, options.layers)}")
    return 0


def lm_eval_verb(arguments: list[str]) -> int:
    from ..evaluate.harness import run_lm_eval

    run_lm_eval(arguments)
    return 0


def finetune_classify_verb(arguments: list[str]) -> int:
    options = parse(OmitArgPrefixes[FinetuneClassify], "finetune-classify", arguments)
    from ..common.files import write_atomically
    from ..data.labelled import TASKS, load_file_task, load_hub_task
    from ..train.classify import cells, check_free, finetune, lines_of_seeds, table

    files = (options.train, options.valid, options.test)
    has_files, has_task = None not in (options.train, options.test), options.task is not None
    if not options.runs or has_files == has_task or (has_task and any(files)):
        raise UsageError(
            "give runs, and either --task NAME, or --train FILE and --test FILE and perhaps --valid FILE: "
            "spikegpt finetune-classify RUN [TWIN] ..."
        )
    warn_of_idle_options(options, idle_in_classifying(options))
    use_threads(options.threads)
    check_runs(options.runs)
    folders = [options.out / run.resolve().name for run in options.runs]
    check_free(folders)
    if (options.out / "results.json").exists():
        raise SpikegptError(f"{options.out} holds the results of others; give another --out")
    if options.train is not None and options.test is not None:
        columns = {"text_column": options.text_column, "label_column": options.label_column}
        task = load_file_task(options.train, options.valid, options.test, **columns)
    else:
        assert options.task is not None
        task = load_hub_task(options.task)
    results = [
        finetune(run, task, options.config, folder, options.device)
        for run, folder in zip(options.runs, folders, strict=True)
    ]
    published = (
        {"46M": TASKS[options.task].published_46m, "216M": TASKS[options.task].published_216m} if options.task else {}
    )
    values = {
        "task": task.name,
        "classes": task.classes,
        "majority": task.majority(),
        "published": published,
        "results": results,
    }
    write_atomically(options.out / "results.json", json.dumps({**values, "config": options.config.to_dict()}, indent=1))
    for suffix in (".csv", ".tex"):
        write_table(options.out / f"results{suffix}", cells(task, results, published), lines_of_seeds(results))
    print(
        json.dumps(values)
        if options.json
        else f"{table(task, results, published)}\n\nclassifiers and results.json, .csv, .tex: {one_line(options.out)}"
    )
    return 0


def import_verb(arguments: list[str]) -> int:
    options = parse(Import, "import", arguments)
    from ..interop.nir_file import is_nir
    from ..interop.weights import import_weights
    from ..measure.describe import describe_model

    out = options.out or Path("runs") / options.source.resolve().stem
    import_weights(
        options.source,
        out,
        spiking=options.spiking,
        tokenizer=options.tokenizer,
        ctx_len=options.ctx_len,
        binary_embedding=options.binary_embedding,
        rescale_every=options.rescale_every,
    )
    facts = describe_model(str(out))
    idle = idle_in_blocks(ModelConfig.from_dict(facts["config"]))
    if is_nir(options.source):
        settings = ("spiking", "ctx_len", "binary_embedding", "rescale_every")
        idle |= dict.fromkeys(settings, "a file of NIR has the model's own configuration")
    warn_of_idle_options(options, idle)
    _show(facts, options.json)
    return 0


def export_verb(arguments: list[str]) -> int:
    options = parse(Export, "export", arguments)
    from ..interop.nir_file import is_nir
    from ..interop.weights import export_weights

    layout = options.layout or ("nir" if is_nir(options.target) else "pth")
    said = export_weights(options.run, options.target, layout)
    print("\n".join([f"wrote {one_line(options.target)}", *map(printable, said)]))
    return 0


def list_verb(arguments: list[str]) -> int:
    options = parse(Listing, "list", arguments)
    from ..measure.listing import runs_in, shipped_models, table

    models = shipped_models() if options.path is None else runs_in(options.path)
    if options.json:
        print(json.dumps([model._asdict() for model in models]))
    else:
        print(table(models) if models else "no models come with this installation")
    return 0


def info_verb(arguments: list[str]) -> int:
    options = parse(Info, "info", arguments)
    from ..measure.describe import describe_model

    _show(describe_model(options.what, options.tensors), options.json)
    return 0


def doctor_verb(arguments: list[str]) -> int:
    options = parse(Doctor, "doctor", arguments)
    from ..measure.doctor import examine

    use_threads(options.threads)
    report = examine()
    _show(report, options.json)
    return 0 if report["healthy"] else 1


def _say_version() -> int:
    from ..kernels.backends import kernel_for

    print(__version__)
    print("".join(f"kernels on {device}: {kernel_for(device)}\n" for device in ("cpu", "cuda")), end="")
    return 0


def _show(values: dict[str, Any], as_json: bool, indent: str = "") -> None:
    if as_json:
        print(json.dumps(values))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _show(value, False, indent + "  ")
        else:
            print(
                f"{indent}{name:<{width}}  "
                f"{f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))}"
            )


VERBS = {
    "train": train_verb,
    "convert": convert_verb,
    "data": data_verb,
    "generate": generate_verb,
    "serve": serve_verb,
    "evaluate": evaluate_verb,
    "lm-eval": lm_eval_verb,
    "finetune-classify": finetune_classify_verb,
    "measure": measure_verb,
    "compare": compare_verb,
    "context": context_verb,
    "simulate": simulate_verb,
    "raster": raster_verb,
    "import": import_verb,
    "export": export_verb,
    "list": list_verb,
    "info": info_verb,
    "doctor": doctor_verb,
}


# words that others have for the same
_MEANT = {
    "resume": "train --resume RUN",
    "continue": "train --resume RUN",
    "finetune": "train --from RUN, or finetune-classify RUN",
    "distill": "convert RUN, or train --teacher RUN",
    "sample": "generate RUN",
    "models": "list",
    "eval": "evaluate RUN",
    "test": "evaluate RUN",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that `arguments` name, by default those of the command line; return the exit status: ending.py."""
    return ended(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int:
    verb, *arguments = words or ["help"]
    if verb in HELP or verb == "help":
        if arguments and arguments[0] in VERBS:
            return VERBS[arguments[0]](["--help"])
        print(USAGE)
        return 0
    if verb in ("version", "--version", "-V"):
        return _say_version()
    if verb == "completion":
        print(completion_script(arguments, VERBS))
        return 0
    if verb in VERBS:
        return VERBS[verb](arguments)
    near = difflib.get_close_matches(verb, VERBS, n=1)
    if verb in _MEANT or near:
        raise UsageError(f"unknown verb {verb!r}; did you mean: spikegpt {_MEANT.get(verb) or near[0]}?")
    raise UsageError(f"unknown verb {verb!r}; known: {', '.join(VERBS)}")
