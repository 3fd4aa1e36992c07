"""The one theme: indigo on slate, with the colours of gradio's Base darkened where WCAG AA asks for it."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils.fonts import LocalFont


def make_theme() -> gr.themes.Base:
    """gradio's Base theme in our colours; fonts are those shipped inside gradio, no other host is asked."""
    theme = gr.themes.Base(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        # The semi-bold files shipped with gradio 6.31 hold Cyrillic only: browsers take bold where 600 is asked for.
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#0b1020",
        body_text_color="*neutral_800",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        background_fill_primary="white",
        background_fill_primary_dark="#131a2e",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="#0f1526",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#26304a",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        link_text_color="*primary_700",
        link_text_color_hover="*primary_900",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_visited="*primary_700",
        link_text_color_visited_dark="*primary_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
