"""The documentation's tours: which commands are shown on which page. `demo/tour.py` runs them.

A mark of `TOURS` is the name of a comment in a page, between which and its end the commands and what they printed stand.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINES = 24
"""Maximum number of lines of a command's output; of longer output the middle is left out."""


@dataclass(frozen=True)
class Step:
    """A command, with the text before it and the picture after it."""

    text: str
    command: str
    """`{neuron}` is the first neuron of `STAND_OUT`; without a command, a step is its text."""
    picture: tuple[str, str, str] | None = None
    """A file that the command has written ("" where it writes none), its name in docs/pictures, the text that stands for it."""
    max_lines: int = MAX_LINES


STAND_OUT = (
    'actstore sql stdlib.actstore "select name, max, std, positive from neurons '
    'where layer = 3 order by (max - mean) / std desc limit 5"'
)
CAPTURE_CODE = (
    "actstore capture demo/models/stdlib-llama build/demo/stdlib stdlib.actstore --precision int8 --max-tokens 250000"
)
GRAPH_PICTURE = ("graph.svg", "graph.svg", "The graph of a neuron: tokens on which it fires in red, contexts in blue")
BUILD_GRAPHS = "actstore graphs build stdlib.actstore"
ATTRIBUTE_FACTS = "actstore attribute demo/models/fact-llama demo/models/fact-llama/questions.json facts.actstore -k 3"
DRAW_PICTURES = "python demo/training/pictures.py pictures --number 600"
CAPTURE_CAPTIONS = (
    "actstore capture demo/models/shapes-llava pictures captions.actstore --generate --site mlp.post --site resid.post"
)
CAPTURE_LANGUAGES = (
    "actstore capture demo/models/language-llama demo/models/language-llama/texts.jsonl.xz languages.actstore "
    "--label language --precision int8"
)
CAPTURE_SMALL = "actstore capture demo/models/stdlib-llama build/demo/stdlib code.actstore --max-tokens 20000"
MAP_PICTURE = ("maps/0000-star.png", "map.png", "The picture, the map of a noun's neurons over it, and the map's mask")

SIX_STEPS = (
    Step(
        "**1. Capture** a model over a folder of text (`make demo` left one), here at one byte per value:", CAPTURE_CODE
    ),
    Step("**2. Which neurons stand out?** Tables are Parquet and Arrow, the query language is SQL:", STAND_OUT),
    Step(
        "**3. What does one of them look for?** Its exemplars, with the highest activation in « »:",
        "actstore top stdlib.actstore {neuron} -k 3",
        max_lines=4,
    ),
    Step("**4. In which contexts does it fire?** A graph of every neuron, from the stored text:", BUILD_GRAPHS),
    Step(
        "",
        "actstore graphs show stdlib.actstore {neuron} --paths 8 --output graph.svg",
        max_lines=0,
    ),
    Step(
        "**5. Which neurons write a token?** From stored activations and weights:",
        'actstore contributions stdlib.actstore --target " return" -k 3',
    ),
    Step(
        "**6. Is every byte what it was,** and does the model still compute the same?",
        "actstore verify stdlib.actstore --refill 2",
    ),
)
TOUR = (
    Step("What would be captured, before anything is:", "actstore inspect demo/models/stdlib-llama"),
    Step("Capture it over a folder of text (`make demo` left one), here at one byte per value:", CAPTURE_CODE),
    Step("Which neurons stand out? The table is Parquet, the language SQL:", STAND_OUT),
    Step("What does one of them look for?", "actstore top stdlib.actstore {neuron} -k 6"),
    Step("And which contexts decide? A graph of every neuron from the stored corpus:", BUILD_GRAPHS),
    Step("One of them as a tree, and as a picture:", "actstore graphs show stdlib.actstore {neuron} --paths 8"),
    Step(
        "",
        "actstore graphs show stdlib.actstore {neuron} --paths 8 --output graph.svg",
        GRAPH_PICTURE,
        max_lines=0,
    ),
    Step(
        "Which neurons write a token? The direct part of each in the token's logit, and the tokens it writes in general:",
        'actstore contributions stdlib.actstore --target " return" -k 5',
    ),
    Step(
        "Is every byte what it was, and does the model still compute the same?",
        "actstore verify stdlib.actstore --refill 2",
    ),
    Step(
        "Take its activations elsewhere, as Parquet, NumPy or safetensors:",
        "actstore export stdlib.actstore --output {neuron}.parquet --neurons {neuron}",
    ),
)
QUESTIONS = (
    Step("Ask the fact model its 796 questions, and keep what every neuron did for every answer:", ATTRIBUTE_FACTS),
    Step(
        "Which neurons is a query's answer attributed to, and other queries' answers not? No model is needed any more:",
        "actstore naica facts.actstore --by relation_name -k 4 --output facts.svg",
        ("facts.svg", "naica.svg", "Where the neurons of each domain are: domains × layers"),
    ),
    Step(
        "Which neurons do most wordings of one fact share?",
        "actstore knowledge facts.actstore --rows 8",
    ),
    Step(
        "Where was the model wrong?",
        'actstore sql facts.actstore "select query, n_correct, probability from queries '
        'where not correct order by probability limit 3"',
    ),
)
CAPTIONS = (
    Step("Draw pictures, and let the embedded captioner say what is on them:", DRAW_PICTURES),
    Step("", CAPTURE_CAPTIONS),
    Step(
        "Which neurons carry each word of a caption, and where on the picture do they look? From the store, without the model:",
        "actstore multimodal captions.actstore -k 3 --document 0 --output maps",
        MAP_PICTURE,
    ),
    Step(
        "Let it say green instead of red. The new write vectors are computed from the store alone:",
        "actstore edit rewrite captions.actstore --from red --to green --max-documents 400",
    ),
    Step(
        "Does it, on pictures that the edit was not made from, and is all else as it was?",
        "actstore edit evaluate captions.actstore red-green-least-norm --seeds 1",
    ),
    Step(
        "Take it along, as an ordinary model folder; `edit revert` restores every byte:",
        "actstore edit apply captions.actstore red-green-least-norm --output shapes-edited",
    ),
)
TOURS: dict[str, tuple[Step, ...]] = {
    "six-steps": SIX_STEPS,
    "tour": TOUR,
    "questions": QUESTIONS,
    "captions": CAPTIONS,
    "output-contributions": (
        Step("", CAPTURE_CODE),
        Step("", 'actstore contributions stdlib.actstore --target " return" -k 5'),
    ),
    "output-naica": (
        Step("", ATTRIBUTE_FACTS, max_lines=8),
        Step(
            "",
            "actstore naica facts.actstore --by relation_name -k 4 --output facts.svg",
            ("facts.svg", "naica.svg", "Where the neurons of each domain are: domains × layers"),
        ),
    ),
    "output-knowledge": (
        Step("", ATTRIBUTE_FACTS, max_lines=8),
        Step("", "actstore knowledge facts.actstore --rows 8"),
    ),
    "output-selectivity": (
        Step("", CAPTURE_LANGUAGES),
        Step("", "actstore selectivity languages.actstore --by language"),
    ),
    "output-change": (
        Step("", "actstore capture demo/models/stdlib-llama build/demo/stdlib base.actstore --max-tokens 20000"),
        Step("", "actstore edit boost base.actstore --neurons L0.N389 --factor 3 --name louder"),
        Step("", "actstore edit apply base.actstore louder --output louder-llama"),
        Step("", "actstore capture louder-llama build/demo/stdlib louder.actstore --max-tokens 20000"),
        Step("", "actstore change base.actstore louder.actstore -k 5"),
        Step(
            "Do those neurons bring the difference about? Six lines of source are continued, and the louder model says how "
            "probable the continuations are; here the patched neurons leave them as they were:",
            "actstore change patch base.actstore louder.actstore build/demo/stdlib/330/keyword.py --scorer likelihood "
            "--max-prompts 6 --max-new-tokens 8 --random 1",
        ),
    ),
    "output-coverage": (
        Step("", CAPTURE_SMALL),
        Step(
            "",
            "actstore capture demo/models/stdlib-llama demo/models/language-llama/texts.jsonl.xz code.actstore "
            "--name messages --max-tokens 20000",
        ),
        Step("", "actstore coverage code.actstore --capture messages --reference corpus"),
    ),
    "output-coactivation": (
        Step("", CAPTURE_SMALL),
        Step("", "actstore coactivation code.actstore L3.N335 -k 5"),
        Step("", "actstore coactivation code.actstore -k 1 --output nearest.parquet", max_lines=8),
    ),
    "output-graphs": (
        Step("", CAPTURE_CODE),
        Step("", BUILD_GRAPHS),
        Step("", "actstore graphs show stdlib.actstore {neuron} --paths 8"),
        Step("", "actstore graphs search stdlib.actstore --activating return -k 3"),
        Step(
            "",
            "actstore graphs show stdlib.actstore {neuron} --paths 8 --output graph.svg",
            GRAPH_PICTURE,
            max_lines=0,
        ),
    ),
    "output-multimodal": (
        Step("", DRAW_PICTURES),
        Step("", CAPTURE_CAPTIONS),
        Step("", "actstore multimodal captions.actstore -k 3 --document 0 --output maps", MAP_PICTURE),
    ),
    "output-edit": (
        Step("", DRAW_PICTURES),
        Step("", CAPTURE_CAPTIONS),
        Step("", "actstore edit rewrite captions.actstore --from red --to green --max-documents 400"),
        Step("", "actstore edit evaluate captions.actstore red-green-least-norm --seeds 1"),
    ),
}
