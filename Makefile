# make demo   train and evaluate UperNet + InceptionNeXt on generated scenes, with pictures
# make demo-detection   the same with Mask R-CNN + RecNeXt
# make test   the whole test suite in random order; ORDER=SEED repeats the order that a run has printed,
#             ORDER=source takes that of the files
# make lint, make typecheck   style and format; types of the public modules
# make test-minimum   the operators' tests on the oldest torch that is supported
# make docs   the site from docs/, in build/docs; warnings are errors
# make setup-ops   compiles mmcv's operators (a C++ compiler, half an hour), for detectors that need more
#                  of them than torchvision has; make test then compares the two
# All but the last make .venv on first use and need nothing but Python 3.10-3.12.

PYTHON := .venv/bin/python
DATA := data/mini
DATA_COCO := data/mini_coco
DEMO := work_dirs/demo
SEED ?= 0
SITE ?= build/docs

.PHONY: demo demo-detection test test-quick test-minimum lint typecheck docs clean

demo: setup-base
	$(PYTHON) tools/generate_data.py $(DATA) --format ade20k --train 400 --val 60 --seed 0 --overwrite
	$(PYTHON) tools/train.py configs/upernet_inceptionnext_a_ade20k_mini.py --work-dir $(DEMO) \
		--cfg-options randomness.seed=$(SEED)
	$(PYTHON) tools/test.py configs/upernet_inceptionnext_a_ade20k_mini.py \
		"$$(cat $(DEMO)/last_checkpoint)" \
		--work-dir $(DEMO)/test --out $(DEMO)/predictions
	$(PYTHON) tools/contact_sheet.py configs/upernet_inceptionnext_a_ade20k_mini.py \
		$(DEMO)/predictions $(DEMO)/pictures.png

demo-detection: export MMLK_MINI_ROOT = $(DATA_COCO)
demo-detection: setup-base
	$(PYTHON) tools/generate_data.py $(DATA_COCO) --format coco --train 400 --val 60 --seed 0
	$(PYTHON) tools/train.py configs/mask_rcnn_recnext_m0_coco_mini.py \
		--work-dir $(DEMO)-detection --cfg-options randomness.seed=$(SEED)
	$(PYTHON) tools/test.py configs/mask_rcnn_recnext_m0_coco_mini.py \
		"$$(cat $(DEMO)-detection/last_checkpoint)" \
		--work-dir $(DEMO)-detection/test --show-dir $(CURDIR)/$(DEMO)-detection/pictures

# Small problems run faster side by side on one thread each than one by one on all.
ORDERED := $(if $(filter source,$(ORDER)),-p no:randomly,$(if $(ORDER),--randomly-seed=$(ORDER)))
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder \
	$(ORDERED)

test: setup-base
	$(PYTEST)

test-quick: setup-base
	$(PYTEST) -m 'not slow'

lint: setup-base
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

typecheck: setup-base
	$(PYTHON) -m mypy

docs: setup-base
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs $(SITE)

# The oldest torch that setup.py admits, in an environment of its own, without OpenMMLab.
test-minimum:
	sh tools/setup_env.sh minimum
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) .venv-minimum/bin/python -m pytest -n auto --dist loadfile \
		$(ORDERED) tests/ops tests/layers

clean:
	rm -rf .venv .venv-minimum work_dirs $(DATA) $(DATA_COCO) build dist *.egg-info

.PHONY: setup-base setup-ops
setup-base setup-ops: setup-%:
	@sh tools/setup_env.sh $*
