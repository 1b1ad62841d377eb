"""What each verb of the command line takes. Flags come from these classes and from the configuration dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ..chip.targets import HEADROOM_BITS, STATE_BITS, TABLE_BITS, WEIGHT_BITS
from ..config import ClassifyConfig, ModelConfig, SamplingConfig, ServeConfig, TrainConfig
from ..config.values import THREADS, TOKENS, WINDOW, Range

# option of any verb -> what its number may be; those of the configurations are checked there
RANGES = {
    "threads": THREADS,
    "tokens": TOKENS,
    "ctx-len": WINDOW,
    "stride": WINDOW,
    "limit-bytes": Range(1, 10**15),
    "texts": Range(1, 4096),
    "end-token": Range(0, 2**31 - 1),
    "processes": Range(1, 1024),
    "port": Range(0, 65535),
    "neurons": Range(1, 65_536),
    "tokens-per-s": Range(0.1, 50.0),
    "weight-bits": WEIGHT_BITS,
    "state-bits": STATE_BITS,
    "table-bits": TABLE_BITS,
    "headroom-bits": HEADROOM_BITS,
    "rescale-every": ModelConfig.ranges["rescale_every"],
}
# all other texts name something
MAY_BE_EMPTY = ("separator", "prompts")

Threads = Annotated[int, arg(help="CPU threads; 0 leaves the choice to torch")]
Device = Annotated[str, arg(help="auto, cpu, cuda, or cuda:N; auto is the GPU where there is one")]


@dataclass(kw_only=True)
class Training:
    """Where and how a training runs; no part of the run."""

    cache: Annotated[Path | None, arg(help="where token files are kept")] = None
    device: Device = "auto"
    shard: Annotated[
        bool, arg(help="of several processes each holds only its share of weights, gradients and optimizer (FSDP)")
    ] = False
    json: Annotated[bool, arg(help="print the result as one line of JSON, and no progress")] = False


@dataclass(kw_only=True)
class Resume(Training):
    """What `train --resume` takes; all else stands in the run's own configuration."""

    resume: Annotated[
        Path | None,
        arg(
            help="continue the run in this folder, with its own configuration; no other flags, "
            "but --data and --teacher if its text or teacher lies elsewhere now"
        ),
    ] = None


@dataclass(kw_only=True)
class Moved(Resume):
    """What `train --resume` takes besides: where lies what the run began with, if no longer where it was."""

    data: tuple[str, ...] | None = None
    teacher: str | None = None


@dataclass(kw_only=True)
class Start:
    """What decides the defaults of all other flags of `train`, or whether they fit, and is therefore read before them.

    Of `convert` it is `mixer` alone.
    """

    config: Path | None = None
    preset: str | None = None
    from_: Annotated[Path | None, arg(name="from")] = None
    spiking: str | None = None
    mixer: str | None = None
    # what a model that is its own teacher cannot have
    teacher: str | None = None
    carry_state: bool = False
    anneal: str | None = None


@dataclass(kw_only=True)
class Train(Resume):
    """Train a model, fine-tune or convert one, or continue a run.

    spikegpt train [--preset NAME | --from RUN | --config FILE | --resume RUN] [flags]
    """

    config: Annotated[
        Path | None,
        arg(help="take what no flag says from this file; RUN/run.yaml trains that run once more, with another --out"),
    ] = None
    preset: Annotated[
        Literal["tiny", "small", "spikegpt-46m", "spikegpt-216m"], arg(help="sizes and optimizer defaults")
    ] = "tiny"
    out: Annotated[Path | None, arg(help="run folder; by default runs/PRESET-SPIKING")] = None
    from_: Annotated[
        Path | None,
        arg(
            name="from",
            help="begin with the weights, sizes and tokenizer of this folder; dense ones may become --spiking input",
        ),
    ] = None
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(kw_only=True)
class Convert(Training):
    """Turn a dense model into a spike-driven one: neurons are fitted, and healed while the dense model teaches.

    A run's own text, seed and batch size are taken, and 3 steps for 7 of its own.
    """

    run: Annotated[Positional[Path], arg(help="folder of a dense run, of a checkpoint, or of an imported model")]
    out: Annotated[Path | None, arg(help="run folder; by default RUN-spiking")] = None
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(kw_only=True)
class Data:
    """Fetch a corpus as a folder that --data takes, or write the tokens of a text for Megatron-LM and RWKV-LM."""

    name: Annotated[
        Positional[str | None],
        arg(
            help="a corpus by name, recall (keys and values, drawn), OWNER/NAME on Hugging Face, or with --binidx any "
            "text; none: list"
        ),
    ] = None
    out: Annotated[Path | None, arg(help="folder to write; by default in the cache")] = None
    column: Annotated[str, arg(help="column of a data set, or key of JSONL lines, that holds the text")] = "text"
    config: Annotated[str | None, arg(help="configuration of a data set that has several")] = None
    split: Annotated[
        str | None,
        arg(help="only this split of a data set, cut into 90/5/5 percent; by default its own three, or train"),
    ] = None
    separator: Annotated[str, arg(help="between the texts of a data set; \\n is a newline, \\t a tab")] = "\\n"
    limit_bytes: Annotated[
        int | None, arg(help="read about so many bytes of each split of a data set; of recall: write so many in all")
    ] = None
    pairs: Annotated[int, arg(help="of recall: at most so many keys in a line, each told once and asked once")] = 16
    letters: Annotated[int, arg(help="of recall: of a key, and of a value")] = 2
    seed: Annotated[int, arg(help="of recall: which keys and values")] = 0
    binidx: Annotated[
        Path | None,
        arg(help="write PREFIX.bin and PREFIX.idx with the tokens of NAME, a document per file or JSONL line"),
    ] = None
    tokenizer: Annotated[str, arg(help="byte, a tokenizer JSON or RWKV World's vocabulary, for --binidx")] = "byte"
    end_token: Annotated[int | None, arg(help="id put after each document; RWKV-LM and GPT-NeoX use 0")] = None
    processes: Annotated[int | None, arg(help="processes that tokenise; by default all CPUs")] = None
    cache: Annotated[Path | None, arg(help="where downloads and corpora are kept; by default ~/.cache/spikegpt")] = None
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class Generate:
    """Write text that continues one or several prompts."""

    run: Annotated[Positional[Path], arg(help="folder of a run or of a checkpoint")]
    prompts: Annotated[Positional[tuple[str, ...]], arg(help="texts to continue; a newline if none")] = ()
    sampling: UseAppendAction[SamplingConfig] = field(default_factory=SamplingConfig)
    device: Device = "auto"
    threads: Threads = 0
    json: Annotated[bool, arg(help="print prompts and texts as JSON, at the end")] = False


@dataclass(kw_only=True)
class Serve:
    """Show runs live on a page, and answer many clients at once by OpenAI's API for completions.

    spikegpt serve [RUN ...]
    """

    runs: Annotated[
        Positional[tuple[Path, ...]],
        arg(help="folders of runs or checkpoints; none: the pair that comes with spikegpt"),
    ] = ()
    host: Annotated[str, arg(help="address to listen on; 0.0.0.0 is every one of this machine")] = "127.0.0.1"
    port: Annotated[int, arg(help="0 takes one that is free")] = 8000
    api_key: Annotated[
        str | None,
        arg(help="what clients must send as Authorization: Bearer KEY; @FILE reads it, for others see this line"),
    ] = None
    allow_host: Annotated[
        UseAppendAction[tuple[str, ...]], arg(help="another name by which the server is reached; repeatable")
    ] = ()
    serving: ServeConfig = field(default_factory=ServeConfig)
    device: Device = "auto"
    threads: Threads = 0


@dataclass(kw_only=True)
class Evaluate:
    """Measure how well runs predict a text, and how much their neurons fire."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(help="folders of runs or checkpoints")]
    split: Annotated[Literal["train", "valid", "test"], arg(help="part of the run's own text")] = "test"
    file: Annotated[Path | None, arg(help="evaluate on this text file instead")] = None
    tokens: Annotated[int | None, arg(help="read at most so many tokens")] = None
    ctx_len: Annotated[int | None, arg(help="tokens per window; by default the model's ctx_len")] = None
    stride: Annotated[int | None, arg(help="tokens scored per window; by default half of ctx_len")] = None
    keep_membrane: Annotated[
        bool, arg(help="start windows with the membranes of the window before, a fault of the published inference")
    ] = False
    last_word: Annotated[
        Path | None, arg(help='instead: predict the last words of passages, {"text": ...} in a .jsonl file, else lines')
    ] = None
    layers: Annotated[bool, arg(help="say of every layer of neurons how much it fires")] = False
    out: Annotated[Path | None, arg(help="write the table into this file as well: .csv, .tex or .json")] = None
    cache: Annotated[Path | None, arg(help="where token files are kept")] = None
    device: Device = "auto"
    threads: Threads = 0
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class Measuring:
    split: Annotated[Literal["train", "valid", "test"], arg(help="part of the run's own text")] = "test"
    file: Annotated[Path | None, arg(help="measure on this text file instead")] = None
    tokens: Annotated[int | None, arg(help="read at most so many tokens")] = 100_000
    prompt: Annotated[str | None, arg(help="text for the spike raster; by default the beginning of the text")] = None
    prices: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(help="price table by name, or your own .toml file; repeatable; default: all"),
    ] = ()
    out: Annotated[Path | None, arg(help="folder of the report; by default RUN/report")] = None
    cache: Annotated[Path | None, arg(help="where token files are kept")] = None
    device: Device = "auto"
    threads: Threads = 0
    json: Annotated[bool, arg(help="print the measurements as JSON instead of a table")] = False


@dataclass(kw_only=True)
class Measure(Measuring):
    """Count what a run computes, estimate what that would cost, and write a report."""

    run: Annotated[Positional[Path], arg(help="folder of a run or of a checkpoint")]


@dataclass(kw_only=True)
class Compare(Measuring):
    """Measure several runs on the same text and set them side by side in one report."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(help="folders of runs or checkpoints")]
    twin: Annotated[bool, arg(help="add the dense twin of the first run: found beside it, or trained now")] = False
    quantised_twin: Annotated[
        bool, arg(help="add each spiking run as a quantised network: the same numbers, every product done")
    ] = False


@dataclass(kw_only=True)
class Simulate:
    """Read a text in the whole numbers of a chip, beside the same model in floats."""

    run: Annotated[Positional[Path], arg(help="folder of a run or of a checkpoint, of the spike-driven rwkv4")]
    target: Annotated[
        Literal["generic", "loihi2"], arg(help="whose arithmetic: 12-bit decays, rounding and cores, or no machine's")
    ] = "generic"
    weight_bits: Annotated[int | None, arg(help="of a weight's mantissa; by default the target's, 8")] = None
    state_bits: Annotated[int | None, arg(help="of stream, currents, membranes, sums; by default 24")] = None
    table_bits: Annotated[int | None, arg(help="2^this intervals has each table; by default 8")] = None
    headroom_bits: Annotated[int, arg(help="ranges are 2^this times what the beginning of the training text needs")] = 2
    split: Annotated[Literal["train", "valid", "test"], arg(help="part of the run's own text")] = "test"
    file: Annotated[Path | None, arg(help="read this text file instead")] = None
    tokens: Annotated[int | None, arg(help="read at most so many tokens")] = 16_384
    prices: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(help="price table by name, or your own .toml file; repeatable; default: loihi1-presilicon"),
    ] = ()
    cache: Annotated[Path | None, arg(help="where token files are kept")] = None
    threads: Threads = 0
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class Context:
    """Measure what a text's memory costs and what it buys: bytes, operations and bits per byte by length.

    spikegpt context RUN [RUN ...] [--policy SPEC ...] [--lengths 128,512,2048]
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(help="folders of runs or checkpoints")]
    policy: Annotated[
        tuple[str, ...],
        arg(
            help="what a key-value cache keeps: full, recency:64,sinks=4, h2o:64, tova:64, roco:64, rotate:2, "
            "mikv:2,share=0.25, fastkv:0.25,tsp=0.5, dynamic:64; + joins what goes together; by default full"
        ),
    ] = ()
    lengths: Annotated[str, arg(help="tokens of a window, between commas; its second half is predicted")] = "128,512"
    texts: Annotated[int, arg(help="windows of each length, evenly over the text")] = 8
    cache_dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], arg(help="how keys and values are cached where they are no codes")
    ] = "float16"
    split: Annotated[Literal["train", "valid", "test"], arg(help="part of the run's own text")] = "test"
    file: Annotated[Path | None, arg(help="read this text file instead")] = None
    recall: Annotated[
        bool, arg(help="ask for values of keys that were told in the first half of a window, in place of a text")
    ] = False
    letters: Annotated[int, arg(help="of a key and of a value, as in what the run learned (spikegpt data recall)")] = 2
    seed: Annotated[int, arg(help="which keys and values")] = 0
    out: Annotated[
        Path | None, arg(help="folder for context.json, .csv, .tex and figures; by default RUN/context, or RUN/recall")
    ] = None
    cache: Annotated[Path | None, arg(help="where token files are kept")] = None
    device: Device = "auto"
    threads: Threads = 0
    json: Annotated[bool, arg(help="print the points as JSON instead of a table")] = False


@dataclass(kw_only=True)
class Spikes:
    """Draw which neurons fire at which token of a text: a picture, or a film that reads it.

    spikegpt raster RUN "some text" [-o spikes.png]
    """

    run: Annotated[Positional[Path], arg(help="folder of a run or of a checkpoint")]
    text: Annotated[Positional[str], arg(help="what is read")]
    out: Annotated[Path, arg(aliases=("-o",), help="a picture, .png or .svg, or a film, .gif or .webp")] = Path(
        "spikes.png"
    )
    sites: Annotated[
        tuple[str, ...],
        arg(
            help='layers of neurons by name, "blocks.0.*"; by default the last of both halves of the first, the middle '
            "and the last block"
        ),
    ] = ()
    neurons: Annotated[int, arg(help="at most so many of each layer, drawn at random")] = 48
    tokens_per_s: Annotated[float, arg(help="pace of a film")] = 8.0
    device: Device = "auto"
    threads: Threads = 0
    json: Annotated[bool, arg(help="print the name of the picture as JSON")] = False


@dataclass(kw_only=True)
class Import:
    """Turn weights of SpikeGPT or RWKV, official or Hugging Face's, into a folder that every verb takes."""

    source: Annotated[
        Positional[Path],
        arg(help=".pth, .safetensors or our .nir file, the folder of a model, or OWNER/NAME[/FILE] of the hub"),
    ]
    out: Annotated[Path | None, arg(help="folder to write; by default runs/NAME")] = None
    spiking: Annotated[
        Literal["none", "output"] | None, arg(help="dense RWKV-4 or the published block, if size and name do not tell")
    ] = None
    tokenizer: Annotated[
        Path | None,
        arg(help="tokenizers JSON, RWKV World's vocabulary, or OWNER/NAME of the hub; default: beside the weights"),
    ] = None
    ctx_len: Annotated[
        int | None, arg(help="tokens per window in evaluation; by default what config.json says, or 1024")
    ] = None
    binary_embedding: Annotated[
        bool, arg(help="pass the embedding through a step, as in training; the published inference of 216M does not")
    ] = True
    rescale_every: Annotated[
        int, arg(help="6: rescale as the published inference does, which weakens what the neurons receive")
    ] = 0
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class Export:
    """Write the model of a run under the names of others."""

    run: Annotated[Positional[Path], arg(help="folder of a run, of a checkpoint, or of an imported model")]
    target: Annotated[Positional[Path], arg(help="file (pth, nir) or folder (huggingface, auto) to write")]
    layout: Annotated[
        Literal["pth", "huggingface", "auto", "nir"] | None,
        arg(
            help="official names in a file of torch.save; RwkvForCausalLM's folder, the hub's of RWKV-5 and -6, fla's "
            "of RWKV-7; a folder for AutoModelForCausalLM with spikegpt.huggingface; a graph for chips (NIR). By "
            "default nir for FILE.nir, else pth"
        ),
    ] = None


@dataclass(kw_only=True)
class Info:
    """Show the sizes and the configuration of a run, a checkpoint or a preset."""

    what: Annotated[Positional[str], arg(help="a preset's name, or the folder of a run or of a checkpoint")]
    tensors: Annotated[bool, arg(help="list every tensor's name and shape too")] = False
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class Listing:
    """List the models that come with spikegpt, which go by their names wherever a run is taken, or runs in a folder.

    What lies in the working directory under such a name is meant first.
    """

    path: Annotated[Positional[Path | None], arg(help="folder of runs; none: what comes with spikegpt")] = None
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class Doctor:
    """Say what is installed, which kernels will run where, whether they are right, and how fast they are here."""

    threads: Threads = 0
    json: Annotated[bool, arg(help="print JSON")] = False


@dataclass(kw_only=True)
class FinetuneClassify:
    """Fine-tune a run for classification, and its dense twin beside it."""

    runs: Annotated[
        Positional[tuple[Path, ...]],
        arg(help="folders of runs, checkpoints or imported models; the dense twin beside the spiking one"),
    ]
    task: Annotated[
        Literal["sst2", "sst5", "mr", "subj"] | None, arg(help="a task of the paper, from the Hugging Face hub")
    ] = None
    train: Annotated[Path | None, arg(help="TSV or CSV file, whose first line names the columns, or JSONL")] = None
    valid: Annotated[Path | None, arg(help="chooses the epoch; by default 10 percent of train are held out")] = None
    test: Annotated[Path | None, arg(help="read once per seed, at the end")] = None
    text_column: str = "text"
    label_column: str = "label"
    out: Annotated[Path, arg(help="folder for results.json, .csv, .tex and the classifiers")] = Path("runs/classify")
    config: ClassifyConfig = field(default_factory=ClassifyConfig)
    device: Device = "auto"
    threads: Threads = 0
    json: Annotated[bool, arg(help="print JSON")] = False
