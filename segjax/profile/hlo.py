"""Parses compiled HLO: the cost of each layer, the collectives, and the memory that padding wastes."""

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
    """The shape and memory layout of an array.

    dtype; dims; order: order of the dimensions in memory, innermost last; tile: the innermost dimensions are padded to
    multiples of it; space: number of the memory space, 0 for the device's main memory.
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
        """Bytes in memory, with the innermost dimensions padded to full tiles."""
        dims = [self.dims[i] for i in self.order]
        for back, tile in enumerate(reversed(self.tile[-len(dims) :] if dims else ()), 1):
            dims[-back] = -(-dims[-back] // tile) * tile
        return math.prod(dims) * self._bits // 8

    @property
    def _bits(self):
        return BITS.get(self.dtype) or int(re.sub(r"^\D+", "", self.dtype).split("e")[0])


class Instruction(NamedTuple):
    """An instruction of a program.

    name; opcode; shapes: shapes of its results; layer: path of its linen module, "" outside all modules; backward:
    whether it is part of a gradient; cycles: the compiler's estimate, 0 if there is none; attributes: the rest of the
    line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    layer: str
    backward: bool
    cycles: int
    attributes: str


class LayerCycles(NamedTuple):
    """Estimated cycles of the forward and backward pass of a layer."""

    layer: str
    forward: int
    backward: int


class HloModule(NamedTuple):
    """A compiled program: its computations by name, and the name of the entry computation."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str, modules: Mapping[str, Any] | None = None) -> HloModule:
    """Parses the text of an optimised program.

    Args:
        text: from `compiled.as_text()`.
        modules: nested dicts with the names of the linen modules, such as the parameters, to find layers by name.

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
    return HloModule(computations, main)


def entry(program: HloModule) -> list[Instruction]:
    """Returns the instructions of the entry computation; each loop or conditional is one instruction."""
    return program.computations[program.entry]


def unestimated(program: HloModule) -> dict[str, int]:
    """Counts the instructions that do work but for which the compiler estimates no cycles.

    Args:
        program: the program to search.

    Returns:
        Number of instructions by opcode, most frequent first: collectives, and operations with more than a thousand
        results.
    """

    def works(i):
        opcode = i.opcode.removesuffix("-start")
        large = any(math.prod(shape.dims) > 1000 for shape in i.shapes)
        return opcode in COLLECTIVES or (large and opcode not in FREE and not opcode.endswith("-done"))

    used = (i.opcode.removesuffix("-start") for i in entry(program) if not i.cycles and works(i))
    return dict(collections.Counter(used).most_common())


def layers(program: HloModule) -> tuple[list[LayerCycles], int]:
    """Sums the estimated cycles of each layer, most expensive first.

    A fusion counts for the layer of its result. The body of a loop counts as often as it runs, and the most expensive
    branch of a conditional once.

    Args:
        program: the program to search.

    Returns:
        The layers, whose cycles add up to those of the program, and the number of loops with an unknown trip count,
        which count once.
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
    costs = [LayerCycles(name, totals[name, False], totals[name, True]) for name in names]
    return sorted(costs, key=lambda c: (-c.forward - c.backward, c.layer)), unknown


class Collective(NamedTuple):
    """A collective: a transfer between devices.

    opcode; shapes and bytes: those of the results, on a device; layer and backward: see `Instruction`; activation:
    whether it gathers a sharded activation, an unwanted all-gather that costs memory and time.
    """

    opcode: str
    shapes: tuple[Shape, ...]
    bytes: int
    layer: str
    backward: bool
    activation: bool


def collectives(program: HloModule, expected: Collection[tuple[int, ...]] = ()) -> list[Collective]:
    """Lists the collectives, largest first.

    Args:
        program: the program to search.
        expected: dimensions of arrays that are gathered on purpose: sharded parameters, and results.

    Returns:
        The collectives of all computations.
    """
    found, expected_dims = [], {tuple(sorted(dims)) for dims in expected}
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
            len(s.dims) >= 3 and tuple(sorted(s.dims)) not in expected_dims for s in shapes
        )
        found.append(Collective(opcode, shapes, sum(s.bytes for s in shapes), i.layer, i.backward, activation))
    return sorted(found, key=lambda c: -c.bytes)


class Buffer(NamedTuple):
    """An array in a device's main memory, and the layer that computes it."""

    shape: Shape
    layer: str
    backward: bool


def buffers(program: HloModule, count: int) -> list[Buffer]:
    """Lists the largest arrays in main memory outside loops, with each shape of a layer once.

    Args:
        program: the program to search.
        count: maximum number of arrays.

    Returns:
        Arrays sorted by size in memory, including padding.
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
    """Returns the index after the bracket that closes the opening one of a text."""
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
        modules: nested dicts with the names of the modules.

    Returns:
        Path of the module, or "" if there is none.

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
    """Converts the results of this module to values that `json` can write."""
    if isinstance(value, Shape):
        return str(value)
    if hasattr(value, "_asdict"):
        return {key: to_json(each) for key, each in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value
