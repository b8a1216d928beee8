"""Two-turn conversations of the topic coding: a small Python function, then a change to it."""

from data.mini_bench.phrasing import Example, say

# name, argument, task, result variable, lines of the body, example call, its result
TASKS = [
    ("add_all", "numbers", "adds all numbers of a list", "total",
     ["{r} = 0", "for {x} in {a}:", "    {r} += {x}", "return {r}"], "[1, 2, 3]", "6"),
    ("count_even", "numbers", "counts the even numbers of a list", "count",
     ["{r} = 0", "for {x} in {a}:", "    if {x} % 2 == 0:", "        {r} += 1", "return {r}"],
     "[1, 2, 4]", "2"),
    ("largest", "values", "returns the largest value of a list", "best",
     ["{r} = {a}[0]", "for {x} in {a}:", "    if {x} > {r}:", "        {r} = {x}", "return {r}"],
     "[3, 9, 5]", "9"),
    ("smallest", "values", "returns the smallest value of a list", "best",
     ["{r} = {a}[0]", "for {x} in {a}:", "    if {x} < {r}:", "        {r} = {x}", "return {r}"],
     "[3, 9, 5]", "3"),
    ("reverse_text", "text", "reverses a text", "result",
     ['{r} = ""', "for {x} in {a}:", "    {r} = {x} + {r}", "return {r}"], '"abc"', '"cba"'),
    ("count_vowels", "text", "counts the vowels of a text", "count",
     ["{r} = 0", "for {x} in {a}:", '    if {x} in "aeiou":', "        {r} += 1", "return {r}"],
     '"banana"', "3"),
    ("double_all", "numbers", "doubles every number of a list", "result",
     ["{r} = []", "for {x} in {a}:", "    {r}.append(2 * {x})", "return {r}"], "[1, 2]", "[2, 4]"),
    ("keep_positive", "numbers", "keeps only the positive numbers of a list", "result",
     ["{r} = []", "for {x} in {a}:", "    if {x} > 0:", "        {r}.append({x})", "return {r}"],
     "[3, -1]", "[3]"),
    ("average", "numbers", "computes the average of a list", "total",
     ["{r} = 0", "for {x} in {a}:", "    {r} += {x}", "return {r} / len({a})"], "[2, 4]", "3.0"),
    ("count_words", "text", "counts the words of a text", "count",
     ["{r} = 0", "for {x} in {a}.split():", "    {r} += 1", "return {r}"], '"a b c"', "3"),
    ("longest_word", "words", "returns the longest word of a list", "best",
     ['{r} = ""', "for {x} in {a}:", "    if len({x}) > len({r}):", "        {r} = {x}",
      "return {r}"], '["a", "tree"]', '"tree"'),
    ("remove_spaces", "text", "removes the spaces from a text", "result",
     ['{r} = ""', "for {x} in {a}:", '    if {x} != " ":', "        {r} += {x}", "return {r}"],
     '"a b"', '"ab"'),
]  # fmt: skip
PREFIXES = ["", "", "my_", "do_", "easy_", "new_", "fast_"]
ARGUMENTS = ["items", "data", "inputs", "entries"]
RESULTS = ["result", "out", "answer", "value"]
LOOPS = ["x", "item", "element", "part"]
ORDERS = [
    "Write a Python function {n} that {t}.",
    "I need a function in Python that {t}. Call it {n}.",
    "How can I write a function that {t}? Its name should be {n}.",
    "Please code this in Python: {n} {t}.",
]


def _code(name, argument, lines, doc=None):
    """A function as a fenced block."""
    body = [f'    """{doc}"""'] if doc else []
    body += ["    " + line for line in lines]
    return "\n".join(["```python", f"def {name}({argument}):", *body, "```"])


def coding(rng):
    """A function, then renamed, documented, explained or called; reference: name and example."""
    base, argument, task, result, template, call, value = rng.choice(TASKS)
    name = rng.choice(PREFIXES) + base
    argument = rng.choice([argument, argument, *ARGUMENTS])
    slots = {"a": argument, "r": rng.choice([result, result, *RESULTS]), "x": rng.choice(LOOPS)}
    lines = [line.format(**slots) for line in template]
    order = rng.choice(ORDERS).format(n=name, t=task)
    lead = say(
        rng, "[|Here is the function:\n|Sure, this is one way:\n|This function {t}:\n]", t=task
    )
    tail = say(
        rng, "[||\nIt goes through {a} step by step.|\nThe loop looks at each {x} once.]", **slots
    )
    first = lead + _code(name, argument, lines) + tail
    kind = rng.randrange(4)
    if kind == 0:
        new = rng.choice([p for p in PREFIXES if p and p + base != name]) + base
        second = say(
            rng,
            "[Rename it to {n}.|Call the function {n} instead.|Please use the name {n}.]",
            n=new,
        )
        answer = _code(new, argument, lines)
    elif kind == 1:
        second = say(rng, "[Add a docstring.|Now with a docstring, please.|Can you document it?]")
        answer = _code(name, argument, lines, f"This function {task}.")
    elif kind == 2:
        second = say(rng, "[Explain it.|How does it work?|Explain the code in words.]")
        answer = say(
            rng,
            "[The function|It] [takes|gets] {a} and [starts with|first sets] {f}. [Then|After "
            "that] a loop [visits|looks at] "
            "each {x} [of|in] {a}. [At the end|Finally] it returns {v}.",
            f=lines[0].replace(" = ", " as "), v=lines[-1].removeprefix("return "), a=argument,
            x=slots["x"],
        )  # fmt: skip
    else:
        second = say(rng, "[Show me how to call it.|Give an example.|How do I use it?]")
        answer = f"```python\nprint({name}({call}))\n```\n" + say(
            rng, "[This prints|The output is|It shows] {v}.", v=value
        )
    return Example("coding", [order, second], [first, answer], [name, value])
