"""Counts the memory traffic and the collectives of a compiled program, from its text (`Compiled.as_text()`).

Invariant: every instruction counts as often as a step runs it, loops included. XLA's own cost analysis counts a loop's
body once. It also counts data that stay in a TPU's on-chip memory, S(1) in the text, as traffic to HBM.
"""

import collections
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # other types have their bits in the name: bf16, f32, s4, f8e4m3fn
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")

# XLA writes a transfer from one slice of TPUs to another, over the data centre's network, as "send".
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)

# Instructions that move no bytes: names of existing arrays, control flow, and calls that only reserve or rename memory.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|opt-barrier|partition-id|"
    "replica-id|recv|add-dependency|domain|.*-done"
)
_FREE_CALL = re.compile(
    r'custom_call_target="(AllocateBuffer|AssumeGatherIndicesInBound|ConcatBitcast|SliceId|Sharding)"'
)
_VIEWS = ("bitcast", "reshape", "transpose", "copy")  # inside a fusion these only read the same elements
_TARGET = {"copy-start": 0, "slice-start": 1}  # which array of the result is written


class Array(NamedTuple):
    """One array of an instruction's result, which may be a tuple of arrays."""

    bytes: int  # of the elements, without a TPU's padding to tiles
    memory: int  # memory space: 0 is HBM, 1 a TPU's on-chip memory


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses, such as a constant's value or a parameter's number
    attributes: str
    is_root: bool

    @property
    def result_bytes(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(array.bytes for array in self.arrays)

    def called(self, attribute: str) -> str:
        """The computation that "calls", "body" or "condition" names, or ""."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match.group(1) if match else ""

    @property
    def origin(self) -> str:
        """The path of the JAX operation that the instruction came from, or ""."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled program: its computations by name, and how often a step runs those that are not fused."""

    computations: dict[str, Computation]
    runs: dict[str, int]
    unread_loops: int  # loops without a number of rounds in the text, which count as one round


class Collective(NamedTuple):
    """One collective instruction."""

    kind: str
    bytes: int  # of the array that is reduced, gathered or sent, on one chip
    group: int  # devices that take part together; 0 where the text does not show them
    asynchronous: bool
    runs: int  # in a step

    @property
    def sent(self) -> float:
        """The least bytes that a chip sends each time: the bound of ring and torus algorithms."""
        share = (self.group - 1) / self.group if self.group else 1.0
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        return self.bytes * (share if self.kind in ("all-gather", "reduce-scatter", "all-to-all") else 1.0)


class Traffic(NamedTuple):
    """What one instruction moves each time it runs."""

    instruction: Instruction
    bytes: int
    runs: int


def read_program(text: str) -> Program:
    """Parses XLA's text form of a program. Raises ValueError where it has no entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    # An instruction takes several lines where its attributes hold a kernel's metadata.
    for line in re.sub(r'\n(?="|\}\})', " ", text).splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) ", line)
            if head:
                current = computations.setdefault(head.group(2), {})
                entry = head.group(2) if head.group(1) else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation in the program's text")
    runs: dict[str, int] = collections.Counter()
    unread = _count_runs(computations, entry, 1, runs)
    return Program(computations, dict(runs), unread)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].strip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=rest[:opening],
        arrays=tuple(_arrays(shape)),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside=inside,
        attributes=rest[closing + 1 :],
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _arrays(shape: str) -> Iterator[Array]:
    for kind, dimensions, layout in _ARRAY.findall(shape):
        bits = _BITS[kind] if kind in _BITS else int(re.search(r"[0-9]+", kind).group())  # type: ignore[union-attr]
        space = re.search(r"S\(([0-9]+)\)", layout)
        elements = math.prod(int(size) for size in dimensions.split(",") if size)
        yield Array(elements * bits // 8, int(space.group(1)) if space else 0)


def _count_runs(computations: dict[str, Computation], name: str, times: int, runs: dict[str, int]) -> int:
    """Adds to `runs` how often `name` and the computations that it calls run; returns the number of loops with an
    unknown number of rounds."""
    runs[name] += times
    unread = 0
    for instruction in computations[name].values():
        called = []
        if instruction.opcode == "while":
            rounds = _rounds(computations, computations[name], instruction)
            unread += rounds is None
            called = [(instruction.called("body"), rounds or 1)]
        elif instruction.opcode == "call":
            called = [(instruction.called("to_apply"), 1)]
        elif instruction.opcode == "conditional":  # the branch that will run is not known, so each counts
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            named = re.findall(r"[\w.\-]+", branches.group(1)) if branches else []
            named += [instruction.called(f"{kind}_computation") for kind in ("true", "false")]
            called = [(branch, 1) for branch in named if branch]
        for body, rounds in called:
            unread += _count_runs(computations, body, times * rounds, runs)
    return unread


def _rounds(computations: dict[str, Computation], outer: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs: XLA's known_trip_count, or the constant in the condition "counter < constant" that
    `scan` makes; None where the text has neither."""
    known = re.search(r'"known_trip_count":\{"n":"([0-9]+)"', loop.attributes)
    if known:
        return int(known.group(1))
    condition = computations[loop.called("condition")]
    compare = next((i for i in condition.values() if i.opcode == "compare" and "direction=LT" in i.attributes), None)
    if compare is None:
        return None
    counter, limit = (condition.get(name) for name in compare.operands)
    if counter is None or limit is None or limit.opcode != "constant" or counter.opcode != "get-tuple-element":
        return None
    index = re.search(r"index=([0-9]+)", counter.attributes)
    initial = outer.get(loop.operands[0])
    first = 0
    if initial is not None and initial.opcode == "tuple" and index:
        start = outer.get(initial.operands[int(index.group(1))])
        first = int(start.inside) if start is not None and start.opcode == "constant" else 0
    return max(int(limit.inside) - first, 0)


def collectives(program: Program) -> list[Collective]:
    """Every collective of a step. A collective is asynchronous where its start and its end are separate instructions,
    between which the scheduler puts work, or where it is fused with work."""
    found = []
    for name, runs in program.runs.items():
        for instruction in program.computations[name].values():
            for place, inner, overlapped in _collectives_in(program, program.computations[name], instruction):
                kind = inner.opcode.removesuffix("-start")
                group = _group_size(inner.attributes)
                size = sum(place[operand].result_bytes for operand in inner.operands if operand in place)
                size *= group if kind == "all-gather" else 1
                found.append(Collective(kind, size, group, overlapped or kind != inner.opcode or kind == "send", runs))
    return found


def by_kind(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """A row for each kind, the most bytes first: how many run in a step ("count"), their "bytes", the bytes that a chip
    has to send for them ("sent"), and how many of the count and of the bytes are asynchronous."""
    table: dict[str, dict[str, Any]] = {}
    for one in found:
        empty = {"kind": one.kind, "count": 0, "bytes": 0, "sent": 0.0, "asynchronous": 0, "asynchronous_bytes": 0}
        row = table.setdefault(one.kind, empty)
        row["count"] += one.runs
        row["bytes"] += one.runs * one.bytes
        row["sent"] += one.runs * one.sent
        row["asynchronous"] += one.runs * one.asynchronous
        row["asynchronous_bytes"] += one.runs * one.bytes * one.asynchronous
    return sorted(table.values(), key=lambda row: -row["bytes"])


def _collectives_in(
    program: Program, place: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction, bool]]:
    """The collectives that an instruction is, wraps or fuses: (its computation, the collective, whether wrapped)."""
    if instruction.opcode.removesuffix("-start") in COLLECTIVES:
        yield place, instruction, False
    elif instruction.opcode in ("fusion", "async-start", "call-start") and not _continues(instruction):
        body = program.computations[instruction.called("calls") or instruction.called("to_apply")]
        for inner in body.values():
            for where, found, _ in _collectives_in(program, body, inner):
                yield where, found, True


def _continues(instruction: Instruction) -> bool:
    """Whether a fusion continues a collective that another fusion has started. On a TPU a collective is spread over the
    fusions that it overlaps, and the text of each of them contains the collective."""
    body = instruction.called("calls")
    return instruction.name.startswith("async-collective-done") or body.startswith("async_collective_fusion")


def _group_size(attributes: str) -> int:
    """The number of devices in one replica group, in any of XLA's three notations; 0 where there is none."""
    listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    table = re.search(r"replica_groups=\[[0-9]+,([0-9]+)\]<=", attributes)
    if table:
        return int(table.group(1))
    named = re.search(r"replica_groups=\w*mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=([0-9]+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named.group(2)))
    return 0


def traffic(program: Program, on_chip: bool = False) -> list[Traffic]:
    """The bytes that each instruction reads from and writes to memory, the largest first.

    An operand of which a fusion uses slices counts as those slices. An operand that a fusion updates in place counts as
    the update. An operand that a fusion only hands on does not count. A collective reads at its start and writes at its
    end. on_chip: whether on-chip memory counts too.
    """
    found = []
    for name, runs in program.runs.items():
        computation = program.computations[name]
        for instruction in computation.values():
            size = _moved(program, computation, instruction, on_chip)
            if size:
                found.append(Traffic(instruction, size, runs))
    return sorted(found, key=lambda one: -one.bytes * one.runs)


def _moved(program: Program, computation: Computation, instruction: Instruction, on_chip: bool) -> int:
    opcode = instruction.opcode
    if _FREE.fullmatch(opcode) or _FREE_CALL.search(instruction.attributes):
        return 0

    def counts(array: Array) -> bool:
        return on_chip or array.memory == 0

    operands = [[a for a in computation[name].arrays if counts(a)] for name in instruction.operands]
    read, written = [_size(arrays) for arrays in operands], _size(a for a in instruction.arrays if counts(a))
    if opcode in _TARGET:  # an asynchronous copy
        target = instruction.arrays[_TARGET[opcode]]
        return target.bytes * (bool(operands[0]) + counts(target))
    if opcode == "send":
        return read[0]
    if opcode in ("dynamic-slice", "slice", "gather"):
        return min(read[0], instruction.result_bytes) + sum(read[1:]) + written
    if opcode == "dynamic-update-slice":
        return read[1] + min(written, computation[instruction.operands[1]].result_bytes)
    if instruction.name.startswith("async-collective-start"):
        return sum(read)
    if instruction.name.startswith("async-collective-done"):
        return written
    if opcode == "fusion":
        body = program.computations[instruction.called("calls")]
        if _continues(instruction):
            body = {name: inner for name, inner in body.items() if inner.is_root or inner.opcode not in COLLECTIVES}
        parameters = sorted((i for i in body.values() if i.opcode == "parameter"), key=lambda i: int(i.inside))
        uses = [_used(program, body, parameter) for parameter in parameters]
        outputs = zip(instruction.arrays, _outputs(program, body), strict=True)
        return sum(map(min, read, uses)) + sum(min(array.bytes, size) for array, size in outputs if counts(array))
    return sum(read) + written


def _size(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _used(program: Program, body: Computation, source: Instruction) -> int:
    """Bytes of `source` that a fused computation reads; 0 of an array that the computation updates in place."""
    total = 0
    for user in body.values():
        for position, name in enumerate(user.operands):
            if name != source.name:
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
                total += user.result_bytes
            elif user.opcode == "fusion":
                inner = program.computations[user.called("calls")]
                total += _used(program, inner, _parameter(inner, position))
            elif user.opcode in _VIEWS:
                total += _used(program, body, user)
            elif user.opcode != "tuple" and (user.opcode != "dynamic-update-slice" or position != 0):
                return source.result_bytes
    return min(total, source.result_bytes)


def _parameter(body: Computation, number: int) -> Instruction:
    return next(i for i in body.values() if i.opcode == "parameter" and int(i.inside) == number)


def _outputs(program: Program, body: Computation) -> list[int]:
    """Bytes that a fused computation writes for each array of its result."""
    root = next(i for i in body.values() if i.is_root)
    results = [body.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    sizes = []
    for result in results:
        while result and result.opcode in _VIEWS:
            result = body[result.operands[0]]
        if result is None or result.opcode == "parameter":  # a collective's output, or an array that is handed on
            sizes.append(0)
        elif result.opcode == "dynamic-update-slice":
            sizes.append(body[result.operands[1]].result_bytes)
        elif result.opcode == "fusion":
            sizes += _outputs(program, program.computations[result.called("calls")])
        else:
            sizes += [array.bytes for array in result.arrays]
    return sizes
