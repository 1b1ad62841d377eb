"""What the library's common tests of generation demand: each way to decode is as reading all anew, without padding."""

import pytest
import torch
import transformers
from huggingface_models import PADDING, make, pad, some_ids
from runs import BLOCKS

from spikegpt.data.tokenizers import CharTokenizer
from spikegpt.interop.huggingface import SpikeGPTForSequenceClassification, from_run, to_huggingface_tokenizer

PROMPTS = [some_ids(5, seed=1), some_ids(2, seed=2), some_ids(3, seed=3)]
GREEDY = {"do_sample": False, "max_new_tokens": 4}
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "top-k and top-p": {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3},
    "several beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "an end": {"do_sample": False, "eos_token_id": list(range(0, 64, 3))},
    "an end of beams": {"do_sample": False, "num_beams": 3, "eos_token_id": list(range(0, 64, 5))},
    "a least length": {"do_sample": False, "min_new_tokens": 4, "eos_token_id": list(range(0, 64, 2))},
    "processors": {
        "do_sample": False,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[3], [5, 6]],
    },
}
each_way_and_block = pytest.mark.parametrize(
    ("way", "block"),
    [pytest.param(way, "input", id=name) for name, way in WAYS.items()]
    + [pytest.param(WAYS["several beams"], block, id=block) for block in BLOCKS if block != "input"],
)


def generate(model, ids, **options):
    torch.manual_seed(0)
    return model.generate(ids, **{"max_new_tokens": 4, **options})


@pytest.fixture
def model():
    return make()


@each_way_and_block
def test_with_a_state_as_without(way, block):
    model = make(block=block)
    ids, mask = pad(PROMPTS, "left")
    found, wanted = (generate(model, ids, attention_mask=mask, use_cache=on, **way) for on in (True, False))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("told", [True, False], ids=["mask", "no mask"])
def test_a_padded_prompt_is_continued_as_alone(model, told):
    ids, mask = pad(PROMPTS, "left")
    found = generate(model, ids, **GREEDY, **({"attention_mask": mask} if told else {}))
    for row, prompt in zip(found, PROMPTS, strict=True):
        assert torch.equal(row[5:], generate(model, prompt[None], **GREEDY)[0, len(prompt) :])


@pytest.mark.parametrize("told", [True, False], ids=["mask", "no mask"])
def test_prompts_that_are_padded_on_the_right_are_refused(model, told):
    ids, mask = pad(PROMPTS, "right")
    with pytest.raises(ValueError, match="padding_side='left'"):
        generate(model, ids, **GREEDY, **({"attention_mask": mask} if told else {}))


@pytest.mark.parametrize("prompt", [[5, 0, 7], [0, 5, 7], [5, 7, 0]], ids=str)
def test_a_token_of_the_text_that_an_export_of_before_pads_with_is_read_or_refused(model, prompt):
    of_before, ids = make(pad_token_id=0), torch.tensor([prompt])
    with pytest.raises(
        ValueError, match=r"the prompt holds token 0, which is the padding and may be .* export the run"
    ):
        generate(of_before, ids, **GREEDY)
    found = generate(of_before, ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert torch.equal(found, generate(model, ids, **GREEDY))


def test_padding_that_got_a_row_needs_no_mask(model):
    ids, mask = pad(PROMPTS, "left")
    model.generation_config.suppress_tokens = [PADDING]
    model.resize_token_embeddings(PADDING + 2)
    assert torch.equal(generate(model, ids, **GREEDY), generate(model, ids, attention_mask=mask, **GREEDY))


def test_without_that_token_an_export_of_before_needs_no_mask(model):
    ids = torch.tensor([[5, 7]])
    assert torch.equal(generate(make(pad_token_id=0), ids, **GREEDY), generate(model, ids, **GREEDY))


def test_padding_stands_behind_a_text_that_has_ended(model):
    end = int(generate(model, PROMPTS[1][None], **GREEDY)[0, 3])
    ids, mask = pad(PROMPTS, "left")
    found = generate(model, ids, attention_mask=mask, eos_token_id=end, **GREEDY)
    row = found[1, 5:].tolist()
    assert row[row.index(end) :] == [end] + [PADDING] * (len(row) - row.index(end) - 1)


@pytest.mark.parametrize("way", ["greedy", "several samples", "several beams", "an end"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_embeddings_are_a_prompt(model, way, use_cache):
    ids, mask = pad(PROMPTS, "left")
    embeddings = model.get_input_embeddings()(ids.masked_fill(mask == 0, 0))
    wanted = generate(model, ids, attention_mask=mask, **WAYS[way])[:, 5:]
    given = {"inputs_embeds": embeddings, "attention_mask": mask, "use_cache": use_cache}
    assert torch.equal(generate(model, None, **given, **WAYS[way]), wanted)


@each_way_and_block
def test_from_a_state_several_new_tokens_are_read(way, block):
    model, ids = make(block=block), some_ids(2, 7)
    if "repetition_penalty" in way:
        pytest.skip("these look at the ids of the prompt")
    state = model(ids[:, :4]).state
    wanted = generate(model, ids, **way)[:, 7:]
    for use_cache in (True, False):
        assert torch.equal(generate(model, ids[:, 4:], state=state, use_cache=use_cache, **way)[:, 3:], wanted)


def test_a_state_that_was_given_is_not_changed(model):
    state = model(some_ids(1, 4)).state
    first, second = (generate(model, some_ids(1, 3), state=state, **GREEDY) for _ in range(2))
    assert torch.equal(first, second)


def test_a_conversation_goes_on_with_the_state_that_generate_gives_out(model):
    ids, more = some_ids(1, 4), some_ids(1, 3, seed=5)
    begun = generate(model, ids, return_dict_in_generate=True, **GREEDY)
    # the last token has been drawn and not read
    new = torch.cat([begun.sequences[:, -1:], more], dim=1)
    found = generate(model, new, state=begun.past_key_values, **GREEDY)
    whole = torch.cat([begun.sequences, more], dim=1)
    assert torch.equal(found[:, new.shape[1] :], generate(model, whole, **GREEDY)[:, whole.shape[1] :])


@pytest.mark.parametrize("beams", [1, 3])
def test_all_that_can_be_given_out_is(model, beams):
    found = generate(
        model,
        some_ids(2, 4),
        num_beams=beams,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        **GREEDY,
    )
    assert len(found.scores) == len(found.logits) == len(found.hidden_states) == 4
    assert found.logits[0].shape == (2 * beams, 64)
    assert [states[0].shape for states in found.hidden_states] == [(2 * beams, n, 16) for n in (4, 1, 1, 1)]
    if beams == 1:
        torch.testing.assert_close(found.logits[-1], model(found.sequences[:, :-1]).logits[:, -1])


def test_guidance_is_refused_with_a_state_of_which_it_knows_nothing(model):
    with pytest.raises(ValueError, match="with a `state` only"):
        generate(model, some_ids(1, 4), guidance_scale=1.5, **GREEDY)
    guided = generate(model, some_ids(1, 4), guidance_scale=1.5, use_cache=False, **GREEDY)
    assert guided.shape == (1, 8)


def test_attentions_are_refused(model):
    with pytest.raises(ValueError, match="no attentions to give out"):
        generate(model, some_ids(1, 4), output_attentions=True, return_dict_in_generate=True)


@pytest.mark.parametrize("way", [{}, {"prompt_lookup_num_tokens": 2}], ids=["model", "lookup"])
def test_drafts_are_refused(model, way):
    way = way or {"assistant_model": make(seed=1)}
    with pytest.raises(ValueError, match="not supported with stateful models"):
        generate(model, some_ids(1, 4), **way)


@pytest.mark.parametrize("option", [{"sate": 1}, {"pixel_values": torch.zeros(1)}])
def test_unknown_options_are_refused(model, option):
    with pytest.raises(ValueError, match="not used by the model"):
        generate(model, some_ids(1, 4), **option)


def test_what_stops_and_what_streams(model):
    class Streamer(transformers.generation.BaseStreamer):
        pieces, ended = [], False

        def put(self, value):
            self.pieces += value.flatten().tolist()

        def end(self):
            self.ended = True

    class AfterThree(transformers.StoppingCriteria):
        def __call__(self, ids, scores, **others):
            return torch.full((len(ids),), ids.shape[1] >= 7)

    streamer = Streamer()
    found = generate(
        model, some_ids(1, 4), streamer=streamer, stopping_criteria=transformers.StoppingCriteriaList([AfterThree()])
    )
    assert found.shape == (1, 7) and streamer.pieces == found[0].tolist() and streamer.ended


def test_without_a_prompt_it_begins_at_the_beginning_of_a_text(model):
    assert generate(model, None, bos_token_id=3, **GREEDY)[0, 0] == 3
    with pytest.raises(ValueError, match="bos_token_id"):
        generate(model, None, **GREEDY)


def test_chunks_of_a_prompt_are_refused(model):
    with pytest.raises(ValueError, match="cache"):
        generate(model, some_ids(1, 8), prefill_chunk_size=4, **GREEDY)


def test_in_half_precision(tmp_path):
    make().save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16").eval()
    ids, mask = pad(PROMPTS, "left")
    assert generate(model, ids, attention_mask=mask, num_beams=2).shape == (3, 9)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_text_pipeline_continues_texts_of_a_batch(trained, batch_size):
    model, tokenizer = from_run(trained)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=batch_size)
    prompts = ["The ", "A long beginning", "wow\n"]
    found = [one[0]["generated_text"] for one in pipeline(prompts, do_sample=False, max_new_tokens=8)]
    for prompt, text in zip(prompts, found, strict=True):
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=8)[0]
        assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_classification_pipeline_reads_texts_of_a_batch(batch_size):
    tokenizer = to_huggingface_tokenizer(CharTokenizer("abc \n"))
    model = make(SpikeGPTForSequenceClassification, pad_token_id=tokenizer.pad_token_id)
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=batch_size)
    texts = ["abc", "a b c a b c", "\n"]
    found = pipeline(texts, top_k=None)
    for text, scores in zip(texts, found, strict=True):
        wanted = model(tokenizer(text, return_tensors="pt").input_ids).logits.softmax(-1)[0]
        assert sorted(one["score"] for one in scores) == pytest.approx(sorted(wanted.tolist()), rel=1e-4)
