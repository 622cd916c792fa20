"""The sentences of docstrings and comments."""

import ast
import re
from collections.abc import Iterator

from _style_sources import FUNCTIONS, Comment, Place, Source

LONG_SENTENCE = 30

ABBREVIATION = re.compile(r"\(?(e\.g|i\.e|cf|vs|al|sec|eqs?|fig|tab|supp)\.", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?][\"'`)\]]*$")
ITEM = re.compile(r"[-*|] |\d+\. |>>> |\S+ {2,}\S")
# What an item of `Args:` begins with; it is no part of the sentence.
ITEM_NAME = re.compile(r"^\*{0,2}\w+( \([^)]*\))?: ")
# An equation, or a row of a table: `y = W x`, or columns with wide gaps between them.
ROW = re.compile(r"\S+( \S+)? = |.*\S {3,}\S")


def long_sentences(source: Source) -> Iterator[Place]:
    """Yield the sentences of docstrings and comments that have more than 30 words."""
    for first_line, lines in texts(source):
        for line, words in sentences(lines):
            # A dash or a lone operator is no word.
            count = sum(bool(re.search(r"\w", word)) for word in words)
            if count > LONG_SENTENCE:
                yield source.place(first_line + line, count, " ".join(words))


def texts(source: Source) -> Iterator[tuple[int, list[str]]]:
    """Yield docstrings and blocks of comments.

    Args:
        source: the file.

    Yields:
        Pairs of the first line's number in the file and the lines.
    """
    for node in source.nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            literal = node.body[0].value
            yield literal.lineno, literal.value.split("\n")

    block: list[Comment] = []
    for comment in source.comments:
        if block and not _continues(block[-1], comment):
            yield block[0].line, [item.text for item in block]
            block = []
        block.append(comment)
    if block:
        yield block[0].line, [item.text for item in block]


def _continues(last: Comment, comment: Comment) -> bool:
    """Whether two comments are lines of one text."""
    is_next = comment.line == last.line + 1 and comment.column == last.column
    return is_next and last.own_line and comment.own_line


def sentences(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Split a text into sentences.

    A blank line, an item of a list, a smaller indent and a heading's colon end a sentence too.
    Equations and rows of tables stand by themselves.

    Args:
        lines: the lines of the text, with their indents. The first line of a docstring has
            lost its indent, so that none is expected of the second.

    Returns:
        Pairs of the first line's index in `lines` and the words.
    """
    words: list[str] = []
    start = indent = 0
    for number, line in enumerate(lines):
        text = line.strip()
        own_indent = len(line) - len(line.lstrip())
        is_row = bool(ROW.match(text))
        begins_anew = is_row or ITEM.match(text) or ITEM_NAME.match(text)
        if words and (not text or own_indent < indent or begins_anew):
            yield start, words
            words = []
        indent = own_indent
        for word in ITEM_NAME.sub("", text, count=1).split():
            if not words:
                start = number
            words.append(word)
            if _ends_sentence(word):
                yield start, words
                words = []
        if words and (is_row or text.endswith(":")):
            yield start, words
            words = []
    if words:
        yield start, words


def _ends_sentence(word: str) -> bool:
    if ABBREVIATION.fullmatch(word) or ".." in word:
        return False
    return bool(SENTENCE_END.search(word))
