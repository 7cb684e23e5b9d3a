"""The demo's pages, one tab for each of the weights; what they do is in `models`."""

import functools
import os
from collections.abc import Callable, Mapping

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
import numpy as np

from fsq_jax.demo import models, pictures
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError

SOURCES = ("upload", "clipboard")
# What a model of a task says.
SAYS = {"depth": "depth", "panoptic": "segments", "colorization": "colours"}


def launch(
    predictors: Mapping[str, Predictor], host: str, port: int, browser: bool, block: bool = True
) -> gr.Blocks:
    """Serves a page of all weights; returns at once unless it is to block.

    Args:
      predictors: path -> trained weights.
      host, port: where to listen.
      browser: whether to open it in a browser.
      block: whether to serve until the process ends.

    Raises:
      UserError: weights of a stage that has no page.
    """
    page = build(predictors)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=browser,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        quiet=True,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    log(f"The page is at {page.local_url}; Ctrl-C ends it.")
    if block:
        page.block_thread()
    return page


def build(predictors: Mapping[str, Predictor]) -> gr.Blocks:
    """The page, not yet served."""
    for path, predictor in predictors.items():
        if predictor.config.stage not in PAGES:
            raise UserError(
                f"{path!r} is of stage {predictor.config.stage!r}; there are pages for "
                f"{', '.join(PAGES)}."
            )
    with gr.Blocks(title="fsq_jax", analytics_enabled=False) as page:
        gr.Markdown("# Finite scalar quantization: trained weights, tried")
        for path, predictor in predictors.items():
            title, show = PAGES[predictor.config.stage]
            task = SAYS.get(predictor.config.get("task", {}).get("name", ""), "")
            with gr.Tab(title.format(task=task)):
                data, step = predictor.config.data, predictor.step
                gr.Markdown(
                    f"`{path}`: {data.source}, {data.size} x {data.size} pixels, step {step:,}"
                )
                show(predictor)
    return page


def tokenizer_page(predictor: Predictor) -> None:
    """A picture beside its reconstruction and its codes; codes painted and decoded."""
    model = models.Tokenizer(predictor)
    state = gr.State()
    with gr.Row():
        given = _picture_in(model)
        rebuilt, codes = _picture("Reconstruction"), _picture("Its codes, a colour for each")
    text = gr.Markdown()
    with gr.Row():
        encode = gr.Button("Encode and decode", variant="primary")
        _another(model, given)
    gr.Markdown("### Paint codes\nChoose a code, brush over the map, and decode it.")
    with gr.Row():
        canvas = _canvas("Codes to paint on", None)
        with gr.Column():
            digits = [
                gr.Slider(0, levels - 1, levels // 2, step=1, label=label)
                for levels, label in zip(model.levels, _channels(model), strict=True)
            ]
            code = _picture("The code's colour, and an image of it alone", height=180)
            paint = gr.Button("Paint and decode", variant="primary")
        painted = _picture("Decoded")

    def encoded(picture):
        found = model.encode(picture)
        return (
            found.reconstruction,
            found.codes,
            found.text,
            found.indices,
            _blank(found.codes),
            found.reconstruction,
        )

    def paint_codes(indices, value, *digits):
        indices, codes, decoded = model.paint(indices, pictures.brushed(value)[1], digits)
        return indices, _blank(codes), decoded

    shown = [rebuilt, codes, text, state, canvas, painted]
    encode.click(_told(encoded), given, shown)
    gr.on(None, _told(encoded), given, shown)  # when the page opens, and for each new picture
    paint.click(_told(paint_codes), [state, canvas, *digits], [state, canvas, painted])
    gr.on(None, lambda *at: model.code(at), digits, code, trigger_mode="always_last")


def maskgit_page(predictor: Predictor) -> None:
    """Classes to samples, and pictures completed, each with its decoding steps."""
    model = models.MaskGIT(predictor)
    names, most = model.class_names, model.most
    with gr.Row():
        with gr.Column(scale=1):
            settings = _sampler(model)
        with gr.Column(scale=3):
            with gr.Tab("Samples"):
                with gr.Row():
                    classes = gr.Dropdown(names, value=names[:2], multiselect=True, label="Classes")
                    num = gr.Slider(1, most, most // 2, step=1, label="Images of each")
                draw = gr.Button("Draw", variant="primary")
                drawn = _steps_out("Samples")
            with gr.Tab("In-painting"):
                with gr.Row():
                    canvas = _canvas("Brush over what is to be drawn again", model.held_out(0))
                    with gr.Column():
                        label = gr.Dropdown(names, value=names[0], label="Class")
                        times = gr.Slider(1, most, most // 2, step=1, label="Completions")
                        fill = gr.Button("Complete", variant="primary")
                        _another(model, canvas)
                filled = _steps_out("Completions")

    def samples(classes, num, *settings):
        yield from model.draw(classes, int(num), models.Sampler(*settings))

    def completions(value, label, num, *settings):
        picture, mask = pictures.brushed(value)
        yield from model.complete(picture, mask, label, int(num), models.Sampler(*settings))

    draw.click(_told_each(samples), [classes, num, *settings], drawn)
    fill.click(_told_each(completions), [canvas, label, times, *settings], filled)


def uvim_page(predictor: Predictor) -> None:
    """A picture, and its depth, segments or colours."""
    model = models.UViM(predictor)
    says = SAYS[predictor.config.task.name]
    with gr.Row():
        given = _picture_in(model)
        seen, said = _picture("What the model sees"), _picture(says.capitalize())
    with gr.Row():
        predict = gr.Button(f"Predict {says}", variant="primary")
        _another(model, given)
    predict.click(_told(model.predict), given, [seen, said])
    given.change(_told(model.predict), given, [seen, said])


# Stage -> (title of the tab, what fills it).
PAGES: dict[str, tuple[str, Callable[[Predictor], None]]] = {
    "maskgit_tokenizer": ("Tokenizer", tokenizer_page),
    "maskgit_transformer": ("MaskGIT", maskgit_page),
    "uvim_lm": ("UViM: {task}", uvim_page),
}


def _picture_in(model: models.Model):
    return gr.Image(
        model.held_out(0), label="Picture", type="numpy", image_mode="RGB", sources=list(SOURCES)
    )


def _picture(label: str, height: int | None = None):
    return gr.Image(label=label, interactive=False, format="png", height=height, buttons=[])


def _canvas(label: str, picture: np.ndarray | None):
    return gr.ImageEditor(
        picture,
        label=label,
        sources=SOURCES,
        brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
        transforms=(),
        layers=False,
        format="png",
        canvas_size=(pictures.SIDE, pictures.SIDE),
        buttons=[],
    )


def _blank(picture: np.ndarray | None) -> dict:
    """What an editor shows: a picture on which nothing is painted."""
    return {"background": picture, "layers": [], "composite": picture}


def _another(model: models.Model, given) -> None:
    """A button that shows the next held-out picture, where there are any."""
    if model.held_out(0) is None:
        return
    number = gr.State(0)

    def following(number):
        picture = model.held_out(number + 1)
        return number + 1, _blank(picture) if isinstance(given, gr.ImageEditor) else picture

    gr.Button("Another held-out picture").click(following, number, [number, given])


def _channels(model: models.Tokenizer) -> list[str]:
    """What the sliders of a code are called."""
    if not model.predictor.facts.levels:
        return [f"Code, of {model.size}"]
    return [f"Channel {i + 1}: {levels} levels" for i, levels in enumerate(model.levels)]


def _sampler(model: models.MaskGIT) -> list:
    """The inputs of a `Sampler`."""
    default, most = model.defaults, min(32, model.num_tokens)
    return [
        gr.Slider(1, most, min(default.num_steps, most), step=1, label="Decoding steps"),
        gr.Slider(0, 20, default.choice_temperature, step=0.1, label="Choice temperature"),
        gr.Slider(0, 8, default.guidance, step=0.1, label="Guidance"),
        gr.Number(default.seed, precision=0, label="Seed"),
    ]


def _steps_out(label: str) -> list:
    """Outputs for what `MaskGIT.draw` yields."""
    return [_picture(label), _picture("Steps: grey is drawn again"), gr.Markdown()]


def _told(function: Callable) -> Callable:
    """The function, whose UserError the page shows."""

    @functools.wraps(function)
    def wrapped(*args):
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return wrapped


def _told_each(function: Callable) -> Callable:
    """The same of a function that yields."""

    @functools.wraps(function)
    def wrapped(*args):
        try:
            yield from function(*args)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return wrapped
