"""Names and shapes of transformers' BERT beside ours: nothing is lost, doubled or rounded, in either direction."""

import itertools
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from spanbert_jax.convert.huggingface import Coverage, from_tensors, named_views, to_tensors
from spanbert_jax.convert.names import SBO, Params
from spanbert_jax.convert.tensor_files import read_tensors
from spanbert_jax.errors import UserError
from tests.support.published import lazy
from tests.support.random_params import COMBINATIONS, MODEL, assert_same_bits, filled, random_bits, shapes
from tests.support.synthetic import VOCAB
from tests.support.transformers_bert import CLASSES, random_bert

SOURCE = "weights/model.safetensors"
WORD, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"
every_combination = pytest.mark.parametrize("sizes", COMBINATIONS.values(), ids=COMBINATIONS)


def imported(tensors: dict[str, np.ndarray]) -> tuple[Params, Coverage]:
    return from_tensors(lazy(tensors), MODEL, VOCAB, shapes, SOURCE)


@every_combination
def test_the_views_cover_every_element_once_but_the_rows_that_pad_the_vocabulary(sizes: dict[str, int]) -> None:
    start = itertools.count()

    def fill(shape: tuple[int, ...]) -> np.ndarray:
        """Numbers that no other element has, exact in float32."""
        return np.array(list(itertools.islice(start, int(np.prod(shape)))), np.float32).reshape(shape)

    params = filled(shapes(sizes), fill)
    assert next(start) < 2**24
    padding = [params["embeddings"]["word"][VOCAB:]] + [
        params[head]["bias"][VOCAB:] for head in ("mlm", "sbo") if head in sizes
    ]
    seen = np.concatenate([view.ravel() for view in named_views(params, VOCAB).values()])
    everything = np.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    expected = np.setdiff1d(everything, np.concatenate([x.ravel() for x in padding]))
    np.testing.assert_array_equal(np.sort(seen), expected)  # setdiff1d sorts

    before = [x.copy() for x in padding]
    for view in named_views(params, VOCAB).values():
        view[...] = -1  # through the view, into the parameters
    everything = np.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    assert np.count_nonzero(everything == -1) == len(seen)
    for x, y in zip(padding, before, strict=True):
        np.testing.assert_array_equal(x, y)


@every_combination
def test_ours_to_tensors_to_ours_keeps_every_bit(sizes: dict[str, int]) -> None:
    params = random_bits(sizes)
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    assert all(tensor.flags["C_CONTIGUOUS"] for tensor in tensors.values())  # else safetensors writes other bytes
    again, report = imported(tensors)
    assert_same_bits(again, params)
    absent = tuple(head for head in ("mlm", "sbo") if head not in sizes)
    assert report == Coverage(("embeddings", "encoder", *[h for h in again if h in sizes]), absent, ())
    assert set(report.taken) == {"embeddings", "encoder", *sizes}


@pytest.mark.parametrize("class_name", CLASSES)
def test_transformers_to_ours_to_transformers_keeps_every_name_and_bit(class_name: str, tmp_path: Path) -> None:
    random_bert(class_name).save_pretrained(tmp_path)
    original = load_file(tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path / "model.safetensors")
    params, report = from_tensors(tensors, MODEL, VOCAB, shapes, SOURCE)
    assert report.left == ()
    again = to_tensors(params, VOCAB, np.dtype(np.float32))
    if class_name == "BertModel":  # whose own files have no prefix
        again = {name.removeprefix("bert."): tensor for name, tensor in again.items()}
    assert_same_bits(again, original)


def old_names(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
    "rename",
    [old_names, lambda name: name.removeprefix("bert."), lambda name: old_names(name.removeprefix("bert."))],
    ids=["gamma_beta", "unprefixed", "both"],
)
@pytest.mark.parametrize("head", ["pretraining", "sequence_classification"])
def test_older_spellings_are_taken_whole(rename: Any, head: str) -> None:
    params = random_bits(COMBINATIONS[head])
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    assert set(renamed) != set(tensors) and len(renamed) == len(tensors)
    again, report = imported(renamed)
    assert_same_bits(again, params)
    assert report.left == ()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32_of_the_same_values(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    ours = filled(shapes(COMBINATIONS["all"]), lambda shape: rng.normal(0, 2, shape).astype(np.float32))
    tensors = {name: view.astype(dtype) for name, view in named_views(ours, VOCAB).items()}
    params, _ = imported(tensors)
    for name, view in named_views(params, VOCAB).items():
        assert view.dtype == np.float32
        np.testing.assert_array_equal(view.astype(np.float64), tensors[name].astype(np.float64), err_msg=name)


def test_copies_of_tied_tensors_are_taken_for_what_they_are() -> None:
    params = random_bits(COMBINATIONS["pretraining"])
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    copies = {f"{DECODER}.weight": tensors[WORD], f"{SBO}.decoder.weight": tensors[WORD]}
    copies |= {f"{DECODER}.bias": tensors["cls.predictions.bias"]}
    buffer = {"bert.embeddings.position_ids": np.arange(MODEL.max_length)[None]}
    again, report = imported(tensors | copies | buffer)
    assert_same_bits(again, params)
    assert report.left == ()


def test_a_vocabulary_bias_under_the_decoders_name_alone_is_taken() -> None:
    params = random_bits(COMBINATIONS["mlm"])
    tensors = to_tensors(params, VOCAB, np.dtype(np.float32))
    tensors[f"{DECODER}.bias"] = tensors.pop("cls.predictions.bias")
    again, report = imported(tensors)
    assert_same_bits(again, params)
    assert report.left == ()


@pytest.mark.parametrize(
    ("decoder", "of"),
    [
        (f"{DECODER}.weight", WORD),
        (f"{SBO}.decoder.weight", WORD),
        (f"{DECODER}.bias", "cls.predictions.bias"),  # transformers 5 keeps it: other logits
    ],
)
def test_an_untied_decoder_is_refused_by_name(decoder: str, of: str) -> None:
    tensors = to_tensors(random_bits(COMBINATIONS["pretraining"]), VOCAB, np.dtype(np.float32))
    untied = tensors[of].copy()
    untied.flat[-1] += 1 + abs(untied.flat[-1])
    assert not np.array_equal(untied, tensors[of])
    assert_refused(tensors | {decoder: untied}, decoder)
    if untied.ndim == 2:
        assert_refused(tensors | {decoder: untied[:-1]}, decoder)


def assert_refused(tensors: dict[str, np.ndarray], name: str) -> str:
    with pytest.raises(UserError) as error:
        imported(tensors)
    message = str(error.value)
    assert message.startswith(SOURCE) and name in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(to_tensors(random_bits(COMBINATIONS["all"]), VOCAB, np.dtype(np.float32))))
def test_each_tensor_that_is_missing_misshapen_or_not_finite_is_an_error_that_names_it(name: str) -> None:
    tensors = to_tensors(random_bits(COMBINATIONS["all"]), VOCAB, np.dtype(np.float32))
    good = tensors.pop(name)
    assert_refused(tensors, name)
    module = name.removesuffix("weight").removesuffix("bias")  # a classifier's two tensors may disagree on its labels
    for wrong in (np.zeros((*good.shape[:-1], good.shape[-1] + 1), np.float32), good[..., None], np.float32([])):
        message = assert_refused(tensors | {name: wrong}, module)
        assert "expected" in message or "rows" in message
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad.flat[-1] = value
        assert "not finite" in assert_refused(tensors | {name: bad}, name)


@pytest.mark.parametrize("name", [WORD, "classifier.weight", f"{SBO}.position_embeddings.weight"])
def test_a_scalar_in_place_of_a_table_is_an_error_that_names_it(name: str) -> None:
    tensors = to_tensors(random_bits(COMBINATIONS["all"]), VOCAB, np.dtype(np.float32))
    assert_refused(tensors | {name: np.array(1, np.float32)}, name)


def test_a_layer_more_or_less_than_the_configuration_says_is_an_error_that_names_it() -> None:
    tensors = to_tensors(random_bits({}), VOCAB, np.dtype(np.float32))
    last = f"bert.encoder.layer.{MODEL.layers - 1}."
    more = {name.replace(last, f"bert.encoder.layer.{MODEL.layers}."): x for name, x in tensors.items()}
    assert_refused(tensors | more, f"bert.encoder.layer.{MODEL.layers}.")
    assert_refused({name: x for name, x in tensors.items() if not name.startswith(last)}, last)


def test_weights_for_another_vocabulary_are_an_error_with_both_sizes() -> None:
    tensors = to_tensors(random_bits({}), VOCAB, np.dtype(np.float32))
    message = assert_refused(tensors | {WORD: tensors[WORD][:-3]}, WORD)
    assert f"({VOCAB - 3}, {MODEL.embed})" in message and f"({VOCAB}, {MODEL.embed})" in message


def test_tensors_of_no_bert_are_an_error_with_what_they_are() -> None:
    assert_refused({"transformer.wte.weight": np.zeros((VOCAB, 24))}, "transformer.wte.weight")


def test_parameters_that_are_not_finite_are_not_exported() -> None:
    params = random_bits({})
    params["encoder"]["mlp"]["up"]["kernel"][1, 3, 4] = np.nan
    with pytest.raises(UserError, match=r"bert\.encoder\.layer\.1\.intermediate\.dense\.weight .*not finite"):
        to_tensors(params, VOCAB, np.dtype(np.float32))
