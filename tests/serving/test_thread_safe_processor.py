"""The processor in several threads: prompts share no tokenizer, and decoding waits for no prompt."""

import threading
from concurrent.futures import ThreadPoolExecutor

from model.generation.sampling import SamplingParams
from model.text_tokenizer import IMAGE_END, IMAGE_START
from serving.loaded_model import LoadedModel
from serving.thread_safe_processor import ThreadSafeProcessor
from tests.serving.parts import HELLO


class SlowProcessor:
    """A processor that never comes to an end with a prompt, and notes how often it has been copied."""

    def __init__(self, processor: object) -> None:
        self.tokenizer = processor.tokenizer
        self.segments, self.text = processor.segments, processor.text
        self.is_released = threading.Event()
        self.num_inside = 0

    def __deepcopy__(self, memo: object) -> "SlowProcessor":
        return self

    def request(self, *args: object, **fields: object) -> None:
        self.num_inside += 1
        self.is_released.wait(30)


def test_decoding_does_not_wait_for_prompts(loaded_model: LoadedModel, wait_until):
    slow = SlowProcessor(loaded_model.processor._reader)
    processor = ThreadSafeProcessor(slow, num_writers=2)
    token_ids = processor.tokenizer.encode("Seven.", add_special_tokens=False)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            pool.submit(processor.request, HELLO, SamplingParams())
        wait_until(lambda: slow.num_inside == 2)

        decoding = pool.submit(processor.parts, token_ids, [])
        try:
            assert decoding.result(timeout=15) == ["Seven."]
        finally:
            slow.is_released.set()


def test_prompts_are_the_same_from_any_thread(loaded_model: LoadedModel):
    processor = ThreadSafeProcessor(loaded_model.processor._reader, num_writers=3)
    alone = processor.request(HELLO, SamplingParams()).input_ids.tolist()

    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(lambda _: processor.request(HELLO, SamplingParams()), range(200)))

    assert all(request.input_ids.tolist() == alone for request in requests)


def test_no_writer_shares_its_tokenizer(loaded_model: LoadedModel):
    processor = ThreadSafeProcessor(loaded_model.processor._reader, num_writers=2)

    tokenizers = [processor.tokenizer, *(processor._writers.get().tokenizer for _ in range(2))]

    assert len({id(tokenizer._tokenizer) for tokenizer in tokenizers}) == 3


def test_marks_of_pictures_are_no_text(loaded_model: LoadedModel):
    tokenizer = loaded_model.processor.tokenizer
    marks = tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
    token_ids = tokenizer.encode("Seven.", add_special_tokens=False)

    assert loaded_model.processor.text([marks[1], *token_ids, marks[0]]) == "Seven."
