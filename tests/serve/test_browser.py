"""The page in a real browser: pictures chosen and dropped, models switched, errors shown.

Needs Playwright (``pip install playwright``) and a Chromium of the system.
"""

import shutil

import pytest

from tests.serve.conftest import png

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.set_default_timeout(20_000)
    faults = []
    page.on('pageerror', lambda error: faults.append(error))
    page.goto(address[0])
    page.wait_for_selector('#model option', state='attached')
    yield page
    page.close()
    assert not faults


def choose(page, content, name='photo.png'):
    page.set_input_files('#file', dict(name=name, mimeType='image/png', buffer=content))


def rows(page):
    return [row.split('\t') for row in page.inner_text('#found').splitlines()]


def test_a_chosen_picture_is_predicted_and_shown(page):
    choose(page, png())
    page.wait_for_selector('#picture[src^="data:image/jpeg"]')
    assert page.get_attribute('#picture', 'alt') == 'segmentation of photo.png'
    assert rows(page) == [['ground', '75.0 %'], ['disc', '25.0 %']]
    assert page.evaluate("document.getElementById('picture').naturalWidth") >= 60


def test_parts_stand_below_each_other(page):
    boxes = [page.locator(f'#{name}').bounding_box() for name in ('model', 'drop', 'status')]
    for above, below in zip(boxes, boxes[1:]):
        assert above['y'] + above['height'] <= below['y']


def test_a_dropped_picture_is_predicted(page):
    page.evaluate(
        """bytes => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(bytes)], 'dropped.png', {type: 'image/png'}));
            document.getElementById('drop').dispatchEvent(
                new DragEvent('drop', {dataTransfer: moved, bubbles: true, cancelable: true}));
        }""",
        list(png()),
    )
    page.wait_for_selector('#picture[alt="segmentation of dropped.png"]')


def test_switching_the_model_predicts_the_picture_again(page):
    choose(page, png())
    page.wait_for_selector('#picture[alt^="segmentation"]')
    page.select_option('#model', 'classification')
    page.wait_for_selector('#picture[alt^="classification"]')
    assert all(0 <= float(score) <= 1 for _, score in rows(page))


def test_errors_are_shown_and_go_with_the_next_picture(page):
    choose(page, b'no picture')
    page.wait_for_function("document.getElementById('error').textContent")
    assert 'no picture that can be read' in page.inner_text('#error')
    choose(page, png())
    page.wait_for_selector('#picture[src^="data:"]')
    assert page.inner_text('#error') == ''
