"""Who holds how much of a prompt, against a model that remembers everything the slow way."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from router.prefix import BLOCK_CHARS, PrefixIndex, blocks_of, by_slot

SLOTS, CAPACITY = 3, 6
EVERYBODY = (1 << SLOTS) - 1


def prompt(*words):
    return tuple(hash(words[: i + 1]) for i in range(len(words)))


prompts = st.lists(st.integers(0, 2), max_size=8).map(lambda words: prompt(*words))


class Slow:
    """One target's blocks, in order of use."""

    def __init__(self):
        self.used = OrderedDict()

    def record(self, blocks):
        for block in reversed(blocks[:CAPACITY]):
            self.used[block] = None
            self.used.move_to_end(block)
        while len(self.used) > CAPACITY:
            self.used.popitem(last=False)

    def longest(self, blocks):
        for count, block in enumerate(blocks):
            if block not in self.used:
                return count
        return len(blocks)


@given(
    st.lists(
        st.tuples(st.sampled_from(["record", "forget"]), st.integers(0, SLOTS - 1), prompts),
        max_size=40,
    ),
    prompts,
)
def test_it_finds_what_a_slow_search_finds(story, asked):
    index, slow = PrefixIndex(10), [Slow() for _ in range(SLOTS)]
    for _ in range(SLOTS):
        index.add(CAPACITY * 10)
    for act, slot, blocks in story:
        if act == "record":
            index.record(slot, blocks)
            slow[slot].record(blocks)
        else:
            index.forget(slot)
            slow[slot] = Slow()
    found = by_slot(index.depths(asked), EVERYBODY)
    longest = {slot: 10 * one.longest(asked) for slot, one in enumerate(slow)}
    assert found == {slot: tokens for slot, tokens in longest.items() if tokens}
    for slot, one in enumerate(slow):
        assert index.blocks(slot) == len(one.used)


def test_a_thousand_holders_are_one_depth():
    index = PrefixIndex()
    system = prompt("you", "are", "helpful")
    for _ in range(1000):
        index.record(index.add(10_000), system)
    index.record(7, (*system, 1, 2))
    depths = index.depths((*system, 1, 2, 3))
    assert [tokens for tokens, _ in depths] == [3 * 64, 5 * 64]
    assert by_slot(depths, 1 << 7 | 1 << 8) == {7: 5 * 64, 8: 3 * 64}


def test_a_target_that_left_holds_nothing_and_others_keep_theirs():
    index = PrefixIndex()
    slots = [index.add(None), index.add(None)]
    for slot in slots:
        index.record(slot, prompt("a", "b"))
    index.forget(slots[0])
    assert by_slot(index.depths(prompt("a", "b")), 0b11) == {slots[1]: 128}
    assert index.blocks(slots[0]) == 0


def test_blocks_are_full_ones_and_chained():
    text = "x" * BLOCK_CHARS + "y" * BLOCK_CHARS
    assert len(blocks_of(text)) == 2
    assert blocks_of(text + "z") == blocks_of(text)
    assert blocks_of("x" * (BLOCK_CHARS - 1)) == ()
    other = blocks_of("w" * BLOCK_CHARS + "y" * BLOCK_CHARS)
    assert not set(other) & set(blocks_of(text)), "the same block behind another is another"
