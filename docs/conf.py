"""Sphinx configuration of the documents: ``make docs``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mmlk  # noqa: E402  (from this checkout, and before mmdet, which looks for MMCV's operators)

project = 'mmlk'
author = 'the mmlk authors'
release = version = mmlk.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']

# Pages are Markdown; anchors are those that GitHub makes, so that links work in both places.
myst_heading_anchors = 4
root_doc = 'index'

# Docstrings are in Google's style; a name in single backticks is printed as code.
default_role = 'code'
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'no-value': True}
autodoc_mock_imports = ['mmpretrain']  # its import takes longer than the rest of the build
python_use_unqualified_type_names = True
# Every reference to something of this package has to be found. Other packages' types are not linked.
smartquotes_action = 'D'  # dashes alone: quotes of code stay as they are
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!mmlk).*')]

html_theme = 'furo'
html_title = 'mmlk'
html_static_path = ['_static']
html_css_files = ['zoo.css']
html_js_files = [('zoo.js', {'defer': 'defer'})]
html_copy_source = False
