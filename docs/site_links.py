"""For MkDocs: links from a page to files outside docs/ work in the repository; on the site they become their text."""

import re


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    up = page.file.src_uri.count("/") + 1  # from the page's folder to the repository
    return re.sub(rf"\[([^]]+)\]\((?:\.\./){{{up}}}[^)]+\)", r"\1", markdown)
