"""Train steps on the same batches on several meshes, in a process that has four CPU devices (devices.py)."""

import re
from typing import Any

import jax
import numpy as np
import optax

from spanbert_jax.config import Config
from spanbert_jax.model import pretraining_heads
from spanbert_jax.tasks.pretraining_loss import objective
from spanbert_jax.training import sharding
from spanbert_jax.training.checksums import checksums
from spanbert_jax.training.optimizer import make_optimizer
from spanbert_jax.training.step import abstract_state, init_state, make_train_step
from tests.support.small_decoder import decoder_config
from tests.support.synthetic import VOCAB, random_batch, small_config

STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "one": {"data": 1},
    "data": {"data": 4, "accumulation": 4},
    "bfloat16": {"data": 4, "reduce_dtype": "bfloat16"},
    "zero": {"data": 4, "accumulation": 2, "shard_optimizer": True},
    "model": {"data": 2, "model": 2, "accumulation": 2},
    "fsdp": {"data": 2, "fsdp": 2, "shard_optimizer": True},
}
EXTENDED: dict[str, dict[str, Any]] = {
    "corpus": {"pairs": True, "spans": "capitals"},
    "model": {
        "head_scales": "output",
        "attention_composition": 2,
        "context_encoder": "bilstm",
        "span_embedding": True,
        "span_attention": "row",
    },
    "train": {"nsp_weight": 1.0},
}
EXTENDED_CASES: dict[str, dict[str, Any]] = {
    "one": {"data": 1},
    "data": {"data": 4, "accumulation": 2},
    "fsdp_model": {"fsdp": 2, "model": 2, "accumulation": 4},
}


def collectives(hlo: str) -> list[dict[str, Any]]:
    """Every collective of a compiled program: its kind, the number of elements that it carries, whether a loop runs it,
    and its replica groups."""
    found, loop = [], False
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            loop = not line.startswith("ENTRY")  # CPU compiles a step to one entry and the bodies of its loops
        match = re.search(r" = (.*?) (all-reduce|reduce-scatter|all-gather)(?:-start)?\(.*?replica_groups=(\S+)", line)
        if match:
            shapes = re.findall(r"\w+\[([0-9,]*)\]", match[1])
            elements = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
            found.append({"kind": match[2], "elements": elements, "loop": loop, "groups": match[3]})
    return found


def run(mesh: dict[str, Any], sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`steps_of` a model with these fields of the configuration."""
    train = sections.get("train", {}) | {"batch_size": 16, "accumulation": mesh.pop("accumulation", 1)}
    config = small_config(**(sections | {"mesh": mesh, "train": train, "optimizer": {"eps": 1e-3}}))
    return steps_of(config, mesh)


DECODER_CASES: dict[str, dict[str, Any]] = {
    "one": {"data": 1},
    "all": {"data": 2, "model": 2, "accumulation": 2, "shard_optimizer": True},
    "fsdp": {"data": 2, "fsdp": 2},
}


def decoder(mesh: dict[str, Any]) -> dict[str, Any]:
    """`steps_of` a span decoder beside a frozen encoder."""
    train = {"batch_size": 16, "accumulation": mesh.pop("accumulation", 1), "only": "decoder"}
    config = decoder_config("runs/tiny", mesh=mesh, train=train, optimizer={"eps": 1e-3})
    return steps_of(config, mesh)


def steps_of(config: Config, mesh: dict[str, Any]) -> dict[str, Any]:
    """The sums of each step, with their names, the last parameters, the program's collectives, the numbers of moments,
    in all and on the first device, and, with fsdp and shard_optimizer, the state's checksums on the devices and on the
    host.

    config: its eps is large, so that an update follows its gradient. With a small eps, rounding would decide the sign
    of Adam's update for a tiny gradient.
    """
    devices = int(np.prod([mesh.get(axis, 1) for axis in ("data", "fsdp", "model")]))
    where = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    with jax.set_mesh(where):
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        init = lambda key: pretraining_heads.init_params(model, key)  # noqa: E731
        abstract = abstract_state(config, init, where)
        state = init_state(config, init, abstract)
        layout, losses, step = sharding.batch_sharding(where), [], None
        for number in range(STEPS):
            batch = jax.device_put(random_batch(config, number), layout)
            step = step or make_train_step(config, objective(model, 7), abstract).lower(state, batch).compile()
            state, sums = step(state, batch)
            names = sorted(sums)
            losses.append([float(sums[name]) for name in names])
        whole = jax.tree.map(np.asarray, state)
        sums_of_bits = (
            [checksums(state), checksums(whole)] if config.mesh.fsdp > 1 and config.mesh.shard_optimizer else []
        )
    moments = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim]
    return {
        "sums": names,
        "losses": losses,
        "params": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state["params"])],
        "collectives": collectives(step.as_text()),
        "checksums": sums_of_bits,
        "moments": sum(leaf.size for leaf in moments),
        "moments_held": sum(leaf.addressable_shards[0].data.size for leaf in moments),
    }


def measured() -> dict[str, Any]:
    """Every case's results, by the case's name."""
    sections = {"model": {"head_scales": "full", "context_encoder": "mingru"}}
    return {name: run(dict(mesh), sections) for name, mesh in CASES.items()}


def extended() -> dict[str, Any]:
    """The results of `EXTENDED_CASES`: pairs, the extensions that `measured` lacks, and next-sentence prediction."""
    return {name: run(dict(mesh), EXTENDED) for name, mesh in EXTENDED_CASES.items()}


MUON_CASES: dict[str, dict[str, Any]] = {
    "one": {"data": 1},
    "zero": {"data": 4, "shard_optimizer": True},
    "fsdp_model": {"fsdp": 2, "model": 2},
}


def muon(mesh: dict[str, Any]) -> dict[str, Any]:
    """The parameters after three updates of Muon by given gradients, and the number of elements that the first device
    holds of each hidden matrix's momentum, beside the number in all."""
    extended = {
        "head_scales": "output",
        "attention_composition": 2,
        "context_encoder": "bilstm",
        "span_attention": "own",
    }
    config = small_config(mesh=mesh, optimizer={"name": "muon"}, model=extended, corpus={"spans": "capitals"})
    devices = int(np.prod([mesh.get(axis, 1) for axis in ("data", "fsdp", "model")]))
    where = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    with jax.set_mesh(where):
        model = pretraining_heads.pretraining_model(config, VOCAB, "cpu")
        abstract = abstract_state(config, lambda key: pretraining_heads.init_params(model, key), where)
        layout = jax.tree.map(lambda leaf: leaf.sharding, (abstract["params"], abstract["opt_state"]))
        optimizer = make_optimizer(config.optimizer, config.train.steps)

        def drawn() -> Any:
            arrays = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract["params"])
            return jax.device_put(arrays, layout[0])

        def update(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        step, params = jax.jit(update, out_shardings=layout), drawn()
        opt_state = jax.jit(optimizer.init, out_shardings=layout[1])(params)
        for _ in range(3):
            params, opt_state = step(params, opt_state, drawn())
    momentum = opt_state[2].inner_states["matrices"].inner_state[0].mu
    return {
        "params": [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(params)],
        "momentum": [(leaf.addressable_shards[0].data.size, leaf.size) for leaf in jax.tree.leaves(momentum)],
    }
