"""Which operations of a stage learn, and to which inputs a gradient flows back.

A frozen part between something that learns and the loss needs gradients of its activations, not of its
weights: the language model in stages 1 and 3, the visual decoder in stages 1 and 2. A part before everything
that learns needs none.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from model.config import VargptConfig
from model.errors import UserError
from training.params import NO_ADAPTER, LoraParams
from training.planning import tokenizer_parts, transformer_parts
from training.planning.operations import Counts, Operation, Reads, Unit


class Part(StrEnum):
    """The parts by which FLOPs, memory and parameters are told."""

    VISION_TOWER = "vision tower"
    UNDERSTANDING_PROJECTOR = "understanding projector"
    LANGUAGE_MODEL = "language model"
    GENERATION_PROJECTORS = "generation projectors"
    VISUAL_DECODER = "visual decoder"
    TOKENIZER_ENCODER = "tokenizer encoder"
    TOKENIZER_DECODER = "tokenizer decoder"


_PART_OF_MODULE = {
    "vision_tower": Part.VISION_TOWER,
    "understanding_projector": Part.UNDERSTANDING_PROJECTOR,
    "language_model": Part.LANGUAGE_MODEL,
    "generation_input_projector": Part.GENERATION_PROJECTORS,
    "generation_output_projector": Part.GENERATION_PROJECTORS,
    "visual_decoder": Part.VISUAL_DECODER,
}
_OF_TOKENIZER_DECODER = ("image_tokenizer.from_latent", "image_tokenizer.decoder")


def part_of(path: str) -> Part:
    """The part that a module belongs to. The quantizer counts as the tokenizer's encoder."""
    if path.startswith(_OF_TOKENIZER_DECODER):
        return Part.TOKENIZER_DECODER
    return _PART_OF_MODULE.get(path.partition(".")[0], Part.TOKENIZER_ENCODER)


@dataclass(frozen=True, slots=True)
class Traced:
    """An operation in a stage.

    Args:
        learns: Whether its weights do, or, where it has none, those of the module at its path.
        needs_gradient: Whether the gradient of its input is computed.
        block_needs_gradient: Whether a gradient flows into the result of its part, so that a checkpointed
            block is computed again.
    """

    operation: Operation
    part: Part
    learns: bool
    needs_gradient: bool
    block_needs_gradient: bool


def trace(
    config: VargptConfig,
    trains: Iterable[str],
    lora: LoraParams | None,
    counts: Counts,
    *,
    encodes: bool,
) -> list[Traced]:
    """All operations of a training step, in their order, with what of them learns and where gradients flow.

    Args:
        trains: Paths of the modules that learn, as in the table of stages.
        counts: Of pictures: without any, no gradient comes from them.
        encodes: Whether pictures that are drawn arrive as pixels and become codes in the step.

    Raises:
        UserError: LoRA names a module without linear maps.
    """
    return Tracer(config, tuple(trains), lora).run(counts, encodes)


def held_operations(config: VargptConfig, lora: LoraParams | None, *, encodes: bool) -> list[Operation]:
    """Everything whose weights a training process holds, the tokenizer's encoder only where it encodes."""
    tokenizer = config.image_tokenizer_config
    operations = [
        *transformer_parts.vision_tower(config),
        *transformer_parts.understanding_projector(config),
        *transformer_parts.word_embeddings(config),
        *transformer_parts.language_layers(config),
        *transformer_parts.language_head(config),
        *transformer_parts.generation_input_projector(config),
        *transformer_parts.generation_output_projector(config),
        *transformer_parts.decoder_embeddings(config),
        *transformer_parts.decoder_blocks(config),
        *transformer_parts.decoder_head(config),
        *(tokenizer_parts.encoder(tokenizer) if encodes else ()),
        *tokenizer_parts.quantizer(tokenizer, encodes=encodes),
        *tokenizer_parts.decoder(tokenizer),
    ]
    if lora is None:
        return operations
    for module in lora.modules:
        if not any(lies_in(op.path, [module]) and _is_linear_map(op) for op in operations):
            raise UserError(f"lora.modules: {module!r} is no module of the model with linear maps")
    return list(with_adapters(operations, lora))


def learning_test(trains: Iterable[str], lora: LoraParams | None) -> Callable[[str], bool]:
    """Whether the weights at a path learn: those of the stage, but of modules with adapters only the
    adapters.
    """
    modules, adapted = list(trains), lora.modules if lora else []

    def learns(path: str) -> bool:
        if path.endswith(ADAPTERS):
            return True
        return lies_in(path, modules) and not lies_in(path, adapted)

    return learns


ADAPTERS = (".lora_A", ".lora_B")


def lies_in(path: str, modules: Iterable[str]) -> bool:
    """Whether a path is one of these modules or lies in one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _is_linear_map(operation: Operation) -> bool:
    is_head = operation.path.split(".")[-1] == NO_ADAPTER
    return operation.kind == "linear" and operation.parameters > 0 and not is_head


def with_adapters(operations: Iterable[Operation], lora: LoraParams | None) -> Iterator[Operation]:
    """The operations, and after each linear map of the named modules its adapter: inputs -> rank -> outputs.

    Maps that read the same input stay together, and their adapters follow.
    """
    group: list[Operation] = []
    for operation in operations:
        if operation.reads is not Reads.SAME:
            yield from _adapted(group, lora)
            group = []
        group.append(operation)
    yield from _adapted(group, lora)


def _adapted(group: list[Operation], lora: LoraParams | None) -> Iterator[Operation]:
    chosen = [op for op in group if lora and lies_in(op.path, lora.modules) and _is_linear_map(op)]
    for operation in group:
        yield replace(operation, ends_block=False) if operation in chosen else operation
    for operation in chosen:
        yield _linear_like(operation, ".lora_A", operation.inputs, lora.rank, Reads.SAME)
    for operation in chosen:
        second = _linear_like(operation, ".lora_B", lora.rank, operation.outputs, Reads.BEFORE)
        yield replace(second, ends_block=operation.ends_block)


def _linear_like(base: Operation, suffix: str, inputs: int, outputs: int, reads: Reads) -> Operation:
    return replace(
        base,
        path=base.path + suffix,
        inputs=inputs,
        outputs=outputs,
        flops=2 * inputs * outputs,
        parameters=inputs * outputs,
        reads=reads,
        ends_block=False,
        kept_to_learn=inputs,
    )


class Tracer:
    """Walks through the model in the order of its forward pass."""

    def __init__(self, config: VargptConfig, trains: tuple[str, ...], lora: LoraParams | None) -> None:
        self.config, self.lora = config, lora
        self.learns = learning_test(trains, lora)
        self._changing = (*trains, *(lora.modules if lora else ()))
        self.traced: list[Traced] = []

    def run(self, counts: Counts, encodes: bool) -> list[Traced]:
        """All operations, traced."""
        config, tokenizer = self.config, self.config.image_tokenizer_config
        has_inputs, has_drawn = counts[Unit.INPUT_IMAGE] > 0, counts[Unit.DRAWN_IMAGE] > 0
        condition = self.learns("visual_decoder.start_embedding")
        # The tokenizer works without gradients.
        if encodes:
            self._walk(Part.TOKENIZER_ENCODER, tokenizer_parts.encoder(tokenizer))
        self._walk(Part.TOKENIZER_ENCODER, tokenizer_parts.quantizer(tokenizer, encodes=encodes))
        features = self._walk(Part.VISION_TOWER, transformer_parts.vision_tower(config))
        features = self._walk(
            Part.UNDERSTANDING_PROJECTOR, transformer_parts.understanding_projector(config), features
        )
        drawn = self._walk(Part.VISUAL_DECODER, transformer_parts.decoder_embeddings(config))
        drawn = self._walk(
            Part.GENERATION_PROJECTORS, transformer_parts.generation_input_projector(config), drawn
        )
        words = self._walk(Part.LANGUAGE_MODEL, transformer_parts.word_embeddings(config))
        embedded = words or (features and has_inputs) or (drawn and has_drawn)
        states = self._walk(Part.LANGUAGE_MODEL, transformer_parts.language_layers(config), embedded)
        self._walk(Part.LANGUAGE_MODEL, transformer_parts.language_head(config), states)
        projected = self._walk(
            Part.GENERATION_PROJECTORS, transformer_parts.generation_output_projector(config), states
        )
        decoded = self._walk(
            Part.VISUAL_DECODER, transformer_parts.decoder_blocks(config), projected, condition
        )
        self._walk(Part.VISUAL_DECODER, transformer_parts.decoder_head(config), decoded, condition)
        return self.traced

    def _walk(
        self, part: Part, operations: Iterable[Operation], needs: bool = False, condition: bool = False
    ) -> bool:
        """Trace operations in a row; whether the last result needs a gradient.

        Args:
            needs: Whether the first input does.
            condition: Whether the condition of the visual decoder does.
        """
        walked, of_input = [], needs
        for operation in with_adapters(operations, self.lora):
            if operation.reads is Reads.BEFORE:
                of_input = needs
            elif operation.reads is Reads.CONDITION:
                of_input = condition
            if operation.kind == "pointwise":
                # Of a module that learns, itself or by an adapter.
                learns = lies_in(operation.path, self._changing)
            else:
                learns = operation.parameters > 0 and self.learns(operation.path)
            walked.append((operation, learns, of_input))
            needs = needs or of_input or learns
        self.traced += [Traced(op, part, learns, of_input, needs) for op, learns, of_input in walked]
        return needs
