# make help says what there is. PYTHON=python3 uses that interpreter and its packages instead of a .venv.
DATASET ?= sample
STAGES := $(sort $(foreach file,$(wildcard notebooks/*.ipynb),$(firstword $(subst _, ,$(notdir $(file))))))
SETTINGS := DATA OUTPUT PHOTOGRAPHS DEVICE SEED TRACKER EPOCHS BATCH_SIZE WEIGHTS ENCODER_WEIGHTS

ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
NEWEST = $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do $$name $(ENOUGH) && echo $$name && break; done)
COLAB_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13) python3.13)

ifdef PYTHON
READY := new_enough
TEST_READY := new_enough
DEMO_READY := new_enough
ONNX_READY := new_enough
else
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip install --quiet --no-compile --disable-pip-version-check
READY := .venv/.ready
TEST_READY := .venv/.ready_for_tests .venv/.ready_to_draw
DEMO_READY := .venv/.ready_for_demo
ONNX_READY := .venv/.ready_for_onnx
ifneq (,$(filter draw=True draw=true draw=yes,$(SET)))
READY += .venv/.ready_to_draw
endif
endif
GIVEN = $(foreach name,$(SETTINGS),$(if $($(name)),$(name)="$($(name))"))
RUN = $(PYTHON) notebooks/run.py --dataset $(DATASET) $(if $(PROFILE),--profile $(PROFILE)) --set $(GIVEN) $(SET) --

# Set-up compiles no module; the first import of one does, once, if it may write.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run photo test test-colab bench lab demo weights onnx export badges outputs lint clean new_enough $(STAGES)
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## / - /'
	@echo "1.4 - one stage, and before it whatever it needs; stages: $(STAGES)"
	@echo "DATASET=celeba DATA=folder-with-celeba  PROFILE=quick|outputs|celeba|none"
	@echo "$(filter-out DATA,$(SETTINGS))  SET=\"parameter=value ...\""

new_enough:
	@$(PYTHON) $(ENOUGH) || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; exit 1; }

.venv/.ready: requirements.txt
	@.venv/bin/python $(ENOUGH) || test -n "$(NEWEST)" || { echo "Python 3.11 or newer is needed; python3 is $$(python3 --version 2>&1)."; exit 1; }
	@echo "Setting up .venv (once, some minutes)"
	@{ .venv/bin/python $(ENOUGH) && .venv/bin/python -m pip --version >/dev/null 2>&1; } || $(NEWEST) -m venv --clear .venv
	@.venv/bin/python notebooks/install_torch.py
	@$(PIP) -r requirements.txt
	@touch $@

.venv/.ready_for_tests: .venv/.ready_for_onnx tests/requirements.txt
	@$(PIP) -r tests/requirements.txt
	@touch $@

.venv/.ready_for_demo: .venv/.ready notebooks/demo_requirements.txt
	@$(PIP) -r notebooks/demo_requirements.txt
	@touch $@

.venv/.ready_for_onnx: .venv/.ready notebooks/onnx_requirements.txt
	@$(PIP) -r notebooks/onnx_requirements.txt
	@touch $@

.venv/colab/.ready: tests/colab_constraints.txt requirements.txt
	@$(COLAB_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null || { echo "Colab has Python 3.13, which $(COLAB_PYTHON) is not: make test-colab COLAB_PYTHON=path-to-python3.13"; exit 1; }
	@echo "Setting up .venv/colab (once, some minutes)"
	@$(COLAB_PYTHON) -m venv --clear .venv/colab
	@PIP_CONSTRAINT=tests/colab_constraints.txt .venv/colab/bin/python notebooks/install_torch.py
	@.venv/colab/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r tests/colab_constraints.txt
	@.venv/colab/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --force-reinstall $$(grep ^opencv-contrib tests/colab_constraints.txt)
	@.venv/colab/bin/python notebooks/install_missing.py papermill
	@touch $@

.venv/.ready_to_draw: .venv/.ready notebooks/draw_requirements.txt
	@$(PIP) --no-deps -r notebooks/draw_requirements.txt
	@touch $@

run: $(READY)  ## the whole series on the embedded sample, or on DATASET=celeba DATA=...
	@$(RUN) all

# Several stages are one run, so that two of them can go at once.
ASKED := $(filter $(STAGES),$(MAKECMDGOALS))
$(STAGES): $(READY)
	@$(if $(filter $@,$(firstword $(ASKED))),$(RUN) $(ASKED),:)

outputs: $(READY)  ## run on the sample with profiles/outputs.yaml, then refresh the committed notebooks
	@$(PYTHON) notebooks/run.py all --profile outputs --set OUTPUT=runs/outputs
	@$(PYTHON) notebooks/outputs.py

export: $(TEST_READY)  ## write what the notebooks teach to notebooks/faces/
	@$(PYTHON) notebooks/export.py

test: $(TEST_READY)  ## the tests; FACES_TEST_DATA=folder adds those on real photographs
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pytest -q -n auto --dist worksteal $(or $(TESTS),tests)

test-colab: .venv/colab/.ready  ## the quick series in runs/colab/, with the packages that Colab has
	@.venv/colab/bin/python notebooks/run.py all --profile quick --set OUTPUT=runs/colab

bench: $(READY)  ## ours, the plain recipe and the limit side by side, on the sample or DATA=...
	@$(if $(DATA),,test -d data/sample || $(RUN) 0.1)
	@$(PYTHON) benchmarks/bench.py $(if $(DATA),--data "$(DATA)") $(BENCH)

lint: $(TEST_READY)  ## mend the style of all Python, notebooks included
	@$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .

lab: $(READY)  ## open the notebooks
	@$(PYTHON) -m jupyter lab notebooks

photo: $(READY)  ## PHOTO=me.jpg or FOLDER=...: everything about its faces, in runs/photo/
	@PYTHONPATH=notebooks$(if $(PYTHONPATH),:$(PYTHONPATH)) MPLBACKEND=agg $(PYTHON) -m faces.pipeline $(if $(PHOTO),"$(PHOTO)") $(if $(FOLDER),"$(FOLDER)") $(if $(PEOPLE),--people "$(PEOPLE)") $(if $(OUTPUT),--output "$(OUTPUT)")

demo: $(DEMO_READY)  ## a page on 127.0.0.1: drop a photograph, see every stage
	@$(PYTHON) notebooks/demo.py $(if $(MODELS),--models "$(MODELS)") $(if $(PEOPLE),--people "$(PEOPLE)") $(if $(PORT),--port $(PORT))

weights: $(READY)  ## DATA=...: train the models in notebooks/weights/ anew, in hours
	@test -n "$(DATA)" || { echo "Say where the photographs are: make weights DATA=folder"; exit 1; }
	@$(PYTHON) notebooks/make_weights.py --data "$(DATA)" $(if $(OUTPUT),--output "$(OUTPUT)") $(if $(ENCODER_WEIGHTS),--encoder-weights "$(ENCODER_WEIGHTS)") $(if $(FEATURES),--features "$(FEATURES)") $(if $(OCCLUDERS),--occluders "$(OCCLUDERS)")

onnx: $(ONNX_READY)  ## the models as ONNX, in runs/onnx/, compared with PyTorch
	@$(PYTHON) notebooks/make_onnx.py $(if $(MODELS),--models "$(MODELS)") $(if $(OUTPUT),--output "$(OUTPUT)")

badges:  ## REPO=owner/name: stamps the repository's name into badges and set-up cells
	@test -n "$(REPO)" || { echo "Say whose: make badges REPO=owner/name"; exit 1; }
	@python3 notebooks/badges.py $(REPO)

clean:  ## remove runs/ and the drawn sample; keeps data you brought and .venv
	@rm -rf runs data/sample csv/*/.[0-9]*
