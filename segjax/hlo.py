"""Reads a compiled program's text: what each layer costs, what travels between devices, what padding wastes."""

import collections
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while", "call", "conditional", "iota"}
FREE |= {"partition-id", "replica-id", "after-all", "opt-barrier"}


class Shape(NamedTuple):
    """An array of a program.

    dtype; dims; order: of the dimensions in memory, the innermost last; tile: what the innermost are rounded up to;
    space: number of its memory, 0 for the device's main one.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.dims) * self._bits // 8

    @property
    def padded_bytes(self) -> int:
        """Bytes in memory: the innermost dimensions are rounded up to whole tiles."""
        dims = [self.dims[i] for i in self.order]
        for back, tile in enumerate(reversed(self.tile[-len(dims) :] if dims else ()), 1):
            dims[-back] = -(-dims[-back] // tile) * tile
        return math.prod(dims) * self._bits // 8

    @property
    def _bits(self):
        return BITS.get(self.dtype) or int(re.sub(r"^\D+", "", self.dtype).split("e")[0])


class Instruction(NamedTuple):
    """A line of a program.

    name; opcode; shapes: of its results; layer: path of the linen module that it belongs to, "" outside of all;
    backward: whether it is part of a gradient; cycles: the compiler's estimate, 0 where it has none; attributes: the
    rest of the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    layer: str
    backward: bool
    cycles: int
    attributes: str


class Cost(NamedTuple):
    """Estimated cycles of a layer's forward and backward pass."""

    layer: str
    forward: int
    backward: int


class Program(NamedTuple):
    """A compiled program: its computations by name, and the name of the one that is run."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str, modules: Mapping[str, Any] | None = None) -> Program:
    """Reads the text of an optimised program.

    Args:
        text: what `compiled.as_text()` gives.
        modules: nested dicts by the names of the linen modules, such as the parameters: names of operations are matched
            with it.

    Returns:
        The program.

    Example:
        >>> text = '''ENTRY %main (a: f32[2,3]) -> f32[2,3] {
        ...   %a = f32[2,3]{1,0:T(8,128)} parameter(0)
        ...   ROOT %b = f32[2,3]{1,0:T(8,128)} add(%a, %a), metadata={op_name="jit(f)/jvp(Net)/conv/add"}
        ... }'''
        >>> [(i.opcode, i.layer, i.shapes[0].bytes, i.shapes[0].padded_bytes) for i in entry(parse(text, {"conv": {}}))]
        [('parameter', '', 24, 4096), ('add', 'conv', 24, 4096)]
    """
    computations: dict[str, list[Instruction]] = {}
    main = name = ""
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = opened[2]
            main = name if opened[1] else main
            computations[name] = []
        elif name and (found := _instruction(line, modules or {})):
            computations[name].append(found)
        elif line.startswith("}"):
            name = ""
    return Program(computations, main)


def entry(program: Program) -> list[Instruction]:
    """The instructions that are run, loops and branches as one each."""
    return program.computations[program.entry]


def unestimated(program: Program) -> dict[str, int]:
    """Counts the instructions that do work and that the compiler gives no cycles for.

    Args:
        program: what to count.

    Returns:
        Number by operation, the most frequent first: what travels between devices, and what else has more than a
        thousand results.
    """

    def works(i):
        opcode = i.opcode.removesuffix("-start")
        large = any(math.prod(shape.dims) > 1000 for shape in i.shapes)
        return opcode in COLLECTIVES or (large and opcode not in FREE and not opcode.endswith("-done"))

    used = (i.opcode.removesuffix("-start") for i in entry(program) if not i.cycles and works(i))
    return dict(collections.Counter(used).most_common())


def layers(program: Program) -> tuple[list[Cost], int]:
    """Estimated cycles of each layer, the costliest first.

    The compiler estimates fusions as a whole; one counts for the layer of its result. Bodies of loops count as often as
    they run, the costliest branch of a conditional once.

    Args:
        program: what to count.

    Returns:
        The layers, whose cycles add up to the program's, and the number of loops of unknown length, which count once.
    """
    totals: dict[tuple[str, bool], int] = collections.Counter()
    unknown = 0

    def add(name, times):
        nonlocal unknown
        for i in program.computations[name]:
            totals[i.layer, i.backward] += times * i.cycles
            if i.opcode == "while":
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', i.attributes)
                unknown += count is None
                for called in _called(i, "body", "condition"):
                    add(called, times * (int(count[1]) if count else 1))
            elif i.opcode == "call":
                for called in _called(i, "to_apply"):
                    add(called, times)
            elif i.opcode == "conditional":
                names = _called(i, "true_computation", "false_computation", "branch_computations")
                if names:
                    add(max(names, key=lambda n: sum(j.cycles for j in program.computations[n])), times)

    add(program.entry, 1)
    names = {layer for layer, _ in totals}
    costs = [Cost(name, totals[name, False], totals[name, True]) for name in names]
    return sorted(costs, key=lambda c: (-c.forward - c.backward, c.layer)), unknown


class Collective(NamedTuple):
    """What travels between devices.

    opcode; shapes and bytes: of the results, on a device; layer and backward: see `Instruction`; activation: whether it
    collects an activation that was divided, which costs memory and time, and is a fault of the program.
    """

    opcode: str
    shapes: tuple[Shape, ...]
    bytes: int
    layer: str
    backward: bool
    activation: bool


def collectives(program: Program, whole: Collection[tuple[int, ...]] = ()) -> list[Collective]:
    """Lists what travels between devices, the largest first.

    Args:
        program: what to search.
        whole: dimensions of arrays that are gathered on purpose: divided parameters, and results.

    Returns:
        The collectives of all computations.
    """
    found, expected = [], {tuple(sorted(dims)) for dims in whole}
    for i in (i for computation in program.computations.values() for i in computation):
        opcode = i.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        shapes = i.shapes
        if i.opcode == "all-gather-start":  # (operands, results)
            shapes = shapes[len(shapes) // 2 :]
        elif i.opcode == "collective-permute-start":  # (operand, result, …)
            shapes = shapes[1:2]
        activation = opcode in ("all-gather", "all-to-all") and any(
            len(s.dims) >= 3 and tuple(sorted(s.dims)) not in expected for s in shapes
        )
        found.append(Collective(opcode, shapes, sum(s.bytes for s in shapes), i.layer, i.backward, activation))
    return sorted(found, key=lambda c: -c.bytes)


class Buffer(NamedTuple):
    """An array in a device's main memory, and the layer that makes it."""

    shape: Shape
    layer: str
    backward: bool


def buffers(program: Program, count: int) -> list[Buffer]:
    """The largest arrays that the program makes in main memory outside of loops, each shape of a layer once.

    Args:
        program: what to search.
        count: greatest number of arrays.

    Returns:
        Arrays by their size in memory, padding included.
    """
    found = {}
    for i in entry(program):
        if i.opcode in ("bitcast", "get-tuple-element", "tuple", "copy-start", "copy-done", "slice-start", "while"):
            continue
        for shape in i.shapes:
            if shape.space == 0 and shape.dims:
                found.setdefault((str(shape), i.layer, i.backward), Buffer(shape, i.layer, i.backward))
    return sorted(found.values(), key=lambda b: -b.shape.padded_bytes)[:count]


def _called(instruction, *keys):
    names = []
    for key in keys:
        if found := re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", instruction.attributes):
            names += re.findall(r"[\w.\-]+", found[1])
    return names


def _instruction(line: str, modules: Mapping[str, Any]) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, attributes = rest.partition("(")
    operation = re.search(r'op_name="([^"]*)"', attributes)
    operation = operation[1] if operation else ""
    cycles = re.search(r'"estimated_cycles":"(\d+)"', attributes)
    return Instruction(
        head[1],
        opcode,
        tuple(_shapes(result)),
        layer_of(operation, modules),
        "transpose(" in operation,
        int(cycles[1]) if cycles else 0,
        attributes,
    )


def _closing(text: str) -> int:
    """End of the bracket that a text opens with."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at + 1
    raise ValueError(f"Unbalanced: {text[:80]}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?", text):
        if dtype in ("token", "opaque"):
            continue
        sizes = tuple(map(int, dims.split(","))) if dims else ()
        minor, _, rest = layout.partition(":")
        order = tuple(map(int, minor.split(",")))[::-1] if minor else tuple(range(len(sizes)))
        tile = re.search(r"T\(([\d,]+)\)", rest)
        space = re.search(r"S\((\d+)\)", rest)
        yield Shape(
            dtype, sizes, order, tuple(map(int, tile[1].split(","))) if tile else (), int(space[1]) if space else 0
        )


def layer_of(operation: str, modules: Mapping[str, Any]) -> str:
    """Finds the linen module in the name of an operation.

    Args:
        operation: such as "jit(train_step)/transpose(jvp(UNet))/UNet._contract/down_0/conv1/conv/add".
        modules: nested dicts by the names of the modules.

    Returns:
        Path of the module, "" where there is none.

    Example:
        >>> layer_of("jit(f)/jvp(UNet)/UNet._contract/down_0/cond/conv1/add", {"down_0": {"conv1": {"kernel": 0}}})
        'down_0/conv1'
    """
    path = []
    for word in operation.split("/"):
        inside = modules.get(word)
        if isinstance(inside, Mapping):
            path.append(word)
            modules = inside
    return "/".join(path)


def to_json(value: Any) -> Any:
    """Turns what this module returns into what `json` writes."""
    if isinstance(value, Shape):
        return str(value)
    if hasattr(value, "_asdict"):
        return {key: to_json(each) for key, each in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value
