"""What the authors published on the dense rows: their results, facts of training, and files."""

from __future__ import annotations

from typing import Any

import yaml

from mmlk.configs import config_root


def published_facts() -> dict[str, Any]:
    """``configs/metafiles/published.yml``: facts of each row, known deviations, checkpoints."""
    path = config_root() / 'metafiles/published.yml'
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def dense_rows() -> dict[str, dict]:
    """Every segmentor and detector of the metafiles by the name of its config."""
    found = {}
    for path in sorted((config_root() / 'metafiles').glob('*.yml')):
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        for model in content.get('Models', ()):
            if '_in1k' not in model['Name']:
                found[model['Name']] = model
    return found
