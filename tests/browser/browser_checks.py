"""What a page must be at any width, asked in the browser that shows it."""

# Wider than the window: what is inside of a box that scrolls is no fault.
OVERFLOWING = """() => {
  const wide = document.documentElement.clientWidth + 1;
  const scrolls = node => node && (node.scrollWidth > node.clientWidth &&
    ['auto', 'scroll', 'hidden'].includes(getComputedStyle(node).overflowX)
    || scrolls(node.parentElement));
  if (document.documentElement.scrollWidth < wide) return [];
  return [...document.querySelectorAll('body *')]
    .filter(node => node.getBoundingClientRect().right > wide
      && !scrolls(node.parentElement))
    .slice(0, 5).map(node => node.tagName + '.' + node.className + ': '
      + node.textContent.trim().slice(0, 40));
}"""
# An image in a hidden part of the page has no width. One in a table that is a link, as
# in the gallery, is a thumbnail.
IMAGES = """async () => {
  const images = [...document.querySelectorAll('img')];
  for (const image of images) image.loading = 'eager';
  await Promise.allSettled(images.map(image => image.decode()));
  return images.map(image => ({
    source: image.src.slice(0, 100), alt: image.alt, natural: image.naturalWidth,
    shown: image.getBoundingClientRect().width,
    isFigure: !image.closest('.sidebar-drawer, .sd-card, td a')}));
}"""
SMALLEST_TEXT = """() => {
  const walker = document.createTreeWalker(
    document.querySelector('article') || document.body, NodeFilter.SHOW_TEXT);
  const isMath = node => node.closest('mjx-container, script, style, sup, sub, svg');
  let smallest = [99, ''];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const node = walker.currentNode.parentElement;
    if (!text || isMath(node) || !node.getClientRects().length) continue;
    const size = parseFloat(getComputedStyle(node).fontSize);
    if (size < smallest[0]) smallest = [size, text.slice(0, 40)];
  }
  return smallest;
}"""
# MathJax runs after the page has loaded.
TYPESET = """() => ![...document.querySelectorAll('.math')].some(
  node => !node.querySelector('mjx-container'))"""


def check(opened, *, figures: int = 0) -> None:
    """Fail where the page shows something wrong.

    Args:
        opened: the page.
        figures: how many it has at least.
    """
    page = opened.page
    if page.query_selector(".math"):
        page.wait_for_function(TYPESET, timeout=20_000)
        article = page.locator("article").first.inner_text()
        assert "\\(" not in article and "\\[" not in article
    images = page.evaluate(IMAGES)
    assert opened.errors == []
    others = [url for url in opened.requests if not url.startswith(("file:", "data:"))]
    assert others == []
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for image in images:
        assert image["natural"] > 0 and image["alt"].strip(), image
    # A figure has its text at 9 points on 4.5 inches: as wide as a phone allows.
    shown = [one for one in images if one["isFigure"] and one["natural"] >= 400]
    assert len(shown) >= figures
    for image in shown:
        assert not image["shown"] or image["shown"] >= min(320, opened.width - 64), (
            image
        )
    size, text = page.evaluate(SMALLEST_TEXT)
    assert size >= 11, f"{size} px: {text!r}"
