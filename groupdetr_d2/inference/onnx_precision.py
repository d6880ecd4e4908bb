"""Exported files of lower precision: float16, and weights of eight bits.

In both, inputs and outputs stay float32, and so do positions, boxes, norms, softmax and scores: as
under autocast in training, products alone are computed with fewer bits.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PRODUCTS = {"Conv", "MatMul", "Gemm"}
PASSING = {"Relu", "MaxPool", "Reshape", "Transpose"}  # they keep the bits of their first input
LARGEST_INT8 = 127


def write_half(source: Path, target: Path) -> None:
    """Writes an ONNX file whose convolutions and matrix products are computed in float16."""
    model = onnx.load(source)
    HalfPrecision(model.graph).rewrite()
    onnx.save(model, target)


class HalfPrecision:
    """Rewrites a graph of float32 so that its products are of float16.

    A value is cast once, where a product needs it, and weights are stored in float16. What no input
    changes stays float32: onnxruntime computes it when it loads the file.
    """

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.weights = {x.name: x for x in graph.initializer}
        self.fixed = set(self.weights)  # values that no input changes
        self.halves: dict[str, str] = {}  # names of values in float16, by those in float32
        self.pending: set[str] = set()  # values that exist in float16 alone so far
        self.nodes: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        """Changes the graph in place."""
        for node in list(self.graph.node):
            self._add(node)
        for output in self.graph.output:
            self._need_float32(output.name)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        drop_unused_weights(self.graph)

    def _add(self, node: onnx.NodeProto) -> None:
        is_fixed = all(name in self.fixed for name in node.input)
        if is_fixed and not _subgraphs(node):
            self.fixed.update(node.output)
        elif node.op_type in PRODUCTS:
            self._compute_in_half(node, len(node.input))
        elif node.op_type in PASSING and node.input[0] in self.pending:
            self._compute_in_half(node, 1)
        for name in (*node.input, *_names_in(_subgraphs(node))):
            self._need_float32(name)
        self.nodes.append(node)

    def _compute_in_half(self, node: onnx.NodeProto, count: int) -> None:
        """Gives a node its first `count` inputs in float16; its output is float16, too."""
        for i, name in enumerate(node.input[:count]):
            node.input[i] = self._half_of(name)
        (output,) = node.output
        node.output[0] = self.halves[output] = f"{output}_half"
        self.pending.add(output)

    def _half_of(self, name: str) -> str:
        if name and name not in self.halves:
            self.halves[name] = f"{name}_half"
            if name in self.weights:
                values = numpy_helper.to_array(self.weights[name]).astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(values, f"{name}_half"))
            else:
                self._cast(name, f"{name}_half", TensorProto.FLOAT16)
        return self.halves.get(name, name)

    def _need_float32(self, name: str) -> None:
        if name in self.pending:
            self.pending.remove(name)
            self._cast(self.halves[name], name, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], f"cast_{target}", to=kind))


def write_int8(source: Path, target: Path) -> None:
    """Writes an ONNX file whose weights have eight bits, with a scale for every output channel.

    Matrix products with weights are computed in eight bits, with scales of the activations that
    are found anew for every input (onnxruntime's dynamic quantisation). Weights of convolutions are
    turned into float32 when they are used: onnxruntime's integer convolutions take longer.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a step that fixes the size of the input
    try:
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=products_of_stacks(onnx.load(source).graph),
        )
    finally:
        root.setLevel(level)
    model = onnx.load(target)
    store_convolutions_as_int8(model.graph)
    onnx.save(model, target)


def products_of_stacks(graph: onnx.GraphProto) -> list[str]:
    """Names the products whose weights are not (in, out), as those of a first stage's groups are.

    onnxruntime writes scales of every channel for them that it refuses to read.
    """
    sizes = {x.name: len(x.dims) for x in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    return [node.name for node in products if any(sizes.get(x, 2) != 2 for x in node.input)]


def store_convolutions_as_int8(graph: onnx.GraphProto) -> None:
    """Stores the weights (out, in, h, w) of convolutions in eight bits, in place."""
    weights = {x.name: x for x in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    stored: set[str] = set()
    for node in graph.node:
        name = node.input[1] if node.op_type == "Conv" else ""
        if name in weights:
            if name not in stored:
                values = numpy_helper.to_array(weights[name])
                nodes.append(_stored_as_int8(graph, name, values))
                stored.add(name)
            node.input[1] = f"{name}_dequantized"
        nodes.append(node)
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused_weights(graph)


def _stored_as_int8(graph: onnx.GraphProto, name: str, values: np.ndarray) -> onnx.NodeProto:
    """Adds eight bits and scales of a weight; returns the node that makes float32 of them."""
    scales = np.abs(values).reshape(len(values), -1).max(1) / LARGEST_INT8
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    rounded = np.round(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    names = [f"{name}_int8", f"{name}_scales"]
    for made, part in zip(names, (rounded, scales), strict=True):
        graph.initializer.append(numpy_helper.from_array(part, made))
    output = f"{name}_dequantized"
    return helper.make_node("DequantizeLinear", names, [output], output, axis=0)


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Removes the initializers that no node and no output reads."""
    used = {*_names_in([graph]), *(x.name for x in graph.output)}
    kept = [x for x in graph.initializer if x.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [x.g for x in node.attribute if x.type == onnx.AttributeProto.GRAPH]


def _names_in(graphs: Iterable[onnx.GraphProto]) -> set[str]:
    """The names of everything that the nodes of graphs read."""
    names: set[str] = set()
    for graph in graphs:
        for node in graph.node:
            names |= {*node.input, *_names_in(_subgraphs(node))}
    return names


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {"fp16": write_half, "int8": write_int8}
