"""Package metadata, and the build step that puts configs and tools into the wheel.

Requirements on the OpenMMLab packages are extras only: upstream and OneDL distributions write the
same import directories, and a hard requirement on either would overwrite the other.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmlk/__init__.py').read_text()).group(1)

ONEDL = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmsegmentation>=1.4.2',
    'onedl-mmdetection>=3.5.1',
    'onedl-mmpretrain>=1.3.6',
]
# The last releases; the first two refuse mmcv 2.2 when they are imported, which pip cannot know.
# mmcv-lite is mmcv without compiled operators.
OPENMMLAB = [
    'mmengine>=0.10.4,<1.0',
    'mmcv-lite>=2.0.1,<2.2',
    'mmsegmentation==1.2.2',
    'mmdet==3.3.0',
    'mmpretrain==1.2.0',
]
# Compiles the CPU operators' loops at run time; without it they use torch's routines alone.
CPU = ['llvmlite>=0.45']
# Exports ONNX files, checks them, and runs them.
EXPORT = ['onnx>=1.17', 'onnxscript>=0.5.4', 'onnxruntime>=1.20']
# Class activation maps.
ANALYSIS = ['captum>=0.7', 'matplotlib']
# Shows predictions in a browser.
SERVE = ['starlette>=0.40', 'uvicorn>=0.30']
# Builds the site from docs/.
DOCS = ['sphinx>=8.1', 'myst-parser>=4.0', 'furo>=2025.12']
TEST = [
    *DOCS,
    *EXPORT,
    *SERVE,
    *ANALYSIS,
    'pytest',
    'pytest-randomly>=4',
    'tifffile',
    'openvino',
    'timm>=1.0.22',
    'accelerate>=1.0',
    'fvcore',
    'thop',
    'ftfy',
    'regex',
    'build',
    'wheel',
]


class BuildWithConfigs(build_py):
    """Copies configs, tools and the model index to ``mmlk/.mim`` of the build, never of the source."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmlk' / '.mim'
        for folder in ('configs', 'tools'):
            shutil.copytree(
                ROOT / folder,
                target / folder,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns('__pycache__'),
            )
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='mmlk',
    version=VERSION,
    description='Large-kernel backbones and operators for MMSegmentation and MMDetection',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmlk', 'mmlk.*']),
    package_data=dict(mmlk=['py.typed', 'serve/page.html']),
    python_requires='>=3.10',
    install_requires=['torch>=2.4', 'numpy', 'argcomplete>=3'],
    entry_points=dict(console_scripts=['mmlk = mmlk.cli.program:main']),
    extras_require=dict(
        analysis=ANALYSIS,
        cpu=CPU,
        docs=DOCS,
        export=EXPORT,
        onedl=ONEDL,
        openmmlab=OPENMMLAB,
        serve=SERVE,
        test=TEST,
    ),
    cmdclass=dict(build_py=BuildWithConfigs),
)
