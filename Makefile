# Bare `make` lists the tasks.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ROWS ?= 100000
KILLS ?= 200
DAMAGES ?= 10000
PAGES ?= 1
BIN = $(VENV)/bin
# Tiny models: threads that wait for each other cost more than they gain.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\#.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlmtune needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

install: $(VENV)/installed  ## install vlmtune and its libraries into .venv (about 5 GB, two minutes)

demo: install  ## teach a tiny model to read handwritten digits, on the CPU, in under three minutes
	$(BIN)/python -m vlmtune.demo.digits demo-data
	rm -rf runs/smoke
	$(BIN)/vlmtune train configs/smoke.yaml
	$(BIN)/vlmtune evaluate runs/smoke --compare base

demo-levers: install  ## the demo with every exact memory lever and without, three seeds: the same weights; ten minutes
	$(BIN)/python tests/bench/exact_levers.py

demo-equal: install  ## 200 steps of the demo, lean adapters and PEFT's forward, packs and not, three seeds: equal losses; six minutes
	$(BIN)/python tests/bench/equal_losses.py

test: install  ## run every test
	$(BIN)/ruff check vlmtune tests
	$(BIN)/python -m pytest -q -n 2

test-oldest:  ## run every test on the oldest supported versions, in a virtual environment of its own
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: install  ## check and format the code
	$(BIN)/ruff check --fix vlmtune tests
	$(BIN)/ruff format vlmtune tests

# What a peer needs beside the libraries that are installed, in a folder that only its own processes see.
.peers/%: tests/gpu/peers-%.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ --requirement $<
	@touch $@

bench: install .peers/trl  ## measure the light commands, an estimate and 100,000 rows (ROWS=1000000: a million), count beside TRL; four minutes
	$(BIN)/python tests/bench/startup.py
	$(BIN)/python tests/bench/rows.py $(ROWS)
	$(BIN)/python tests/bench/beside_trl.py .peers/trl

bench-memory: install  ## measure main memory in real runs beside its estimate; on a CPU ten minutes, on the GPU at hand three
	$(BIN)/python tests/bench/main_memory.py

gpu-check:  ## estimate every measured GPU run anew with the versions that were measured, hold the error bounds; no GPU, half an hour
	$(MAKE) install VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	.venv-oldest/bin/python -m pytest -q -m "slow or not slow" tests/gpu/test_measured.py

gpu-errors:  ## estimate them with the library versions that were measured and write the table of errors
	$(MAKE) install VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	.venv-oldest/bin/python tests/gpu/compare.py

gpu-microbench: install  ## time single kernels on the GPU at hand, which predicted time is made of; under a minute
	$(BIN)/python tests/gpu/microbench.py tests/gpu/measured/microbench-here.json

gpu-time-errors:  ## write how far off predicted time was; PREDICT='--predict CASE ...': predict runs before they are timed
	$(MAKE) install VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	.venv-oldest/bin/python tests/gpu/compare_time.py $(PREDICT)

gpu: install  ## train every case on the GPUs at hand and write what the allocator showed; forty minutes on one with 16 cores
	$(BIN)/python tests/gpu/measure.py tests/gpu/measured/here.json vlmtune/catalog

gpu-cap: install  ## train plans under a cap a little above and below their estimate, on the GPU at hand; about five minutes
	$(BIN)/python tests/gpu/cap.py tests/gpu/measured/cap-here.json

gpu-train: install  ## run `vlmtune train` on the GPU at hand, estimates beside measurements; about six minutes
	$(BIN)/python tests/gpu/train.py tests/gpu/measured/train-here.json

gpu-features: install  ## an epoch with the vision tower and with cached features, on the GPU at hand; about five minutes
	$(BIN)/python tests/gpu/features.py tests/gpu/measured/features-here.json

gpu-packing: install  ## rows in batches and in packs, times, losses and peaks, on the GPU at hand; about eight minutes
	$(BIN)/python tests/gpu/packing.py tests/gpu/measured/packing-here.json

gpu-bench:  ## vlmtune, TRL and unsloth side by side on the GPU at hand (BENCH='--gpus 0,1'); about half an hour on one
	$(MAKE) install .peers/trl .peers/unsloth VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	.venv-oldest/bin/python tests/gpu/bench.py tests/gpu/measured/bench-here.json --peers trl=.peers/trl unsloth=.peers/unsloth $(BENCH)

gpu-small-card: install  ## train 8B to 32B models on 7 GiB of the GPU at hand, and on all of it; about eight minutes
	$(BIN)/python tests/gpu/small_card.py tests/gpu/measured/small-card-here.json

gpu-streaming: install  ## time layers in main memory on the GPU at hand: how much of their way is hidden; about five minutes
	$(BIN)/python tests/gpu/streaming.py tests/gpu/measured/streaming-here.json vlmtune/catalog

gpu-ranks: install  ## train on one GPU and on all of them: times, peaks, NCCL's bytes; under eight minutes
	$(BIN)/python tests/gpu/ranks.py tests/gpu/measured/ranks-here.json

gpu-ranks-memory: install  ## peaks of every GPU in 24 plans on two and four of them; four minutes
	$(BIN)/python tests/gpu/ranks_memory.py --measure tests/gpu/measured/ranks-memory-here.json

gpu-ranks-peers: install  ## vlmtune and TRL (in TRL=FOLDER) under accelerate on 2 and 4 GPUs; two minutes
	$(BIN)/python tests/gpu/ranks_peers.py tests/gpu/measured/ranks-peers-here.json --trl $(TRL)

gpu-time: install  ## time a step of every case on the GPUs at hand, one run on each at a time; about a minute a case
	$(BIN)/python tests/gpu/timed.py tests/gpu/measured/time-here.json

gpu-plan: install  ## time what `plan` chooses for six models beside what it might have chosen; six minutes on four GPUs
	$(BIN)/python tests/gpu/brute.py tests/gpu/measured/brute-here.json --within 600

gpu-lean: install  ## train with PEFT's forward and with lean adapters on the GPU at hand: time, launches, memory, losses; about eight minutes
	$(BIN)/python tests/gpu/lean.py tests/gpu/measured/lean-here.json

gpu-equal: install  ## the losses of 50 steps with and without lean adapters, packs and the rest, three seeds; eight minutes on one GPU
	$(BIN)/python tests/gpu/equal.py tests/gpu/measured/equal-here.json

evening: install  ## train the demo's model on 30 to 5,000 rows with every preset and renew docs/evening.md; half an hour
	$(BIN)/python tests/bench/evening.py

readme: install  ## run every command in the README, in order, as written, without a GPU; three minutes (WALK=--all: the slow ones)
	$(BIN)/python docs/walk.py $(WALK)

docs: install  ## renew what is generated: tables in README and docs/, configs/schema.json, configs/all-keys.yaml, the picture
	$(BIN)/python docs/renew.py

screenshots: install  ## photograph the pages of the demo's run into docs/pages, after `make demo`; needs Chromium
	$(BIN)/python tests/screenshots.py

kills: install  ## kill runs of every kind at 200 random moments, each until it has ended, and image encoding at twenty; four minutes (KILLS=200)
	VLMTUNE_KILLS=20 $(BIN)/python -m pytest -q -n0 tests/unit/data/features/test_kills.py
	$(BIN)/python tests/bench/kills.py $(KILLS)

damage: install  ## damage every file of a run and of the caches in seven ways and ask every command that reads it, 1,140 times; six minutes (DAMAGES=200)
	VLMTUNE_DAMAGES=$(DAMAGES) $(BIN)/python -m pytest -q -n0 tests/e2e/test_damage_matrix.py tests/e2e/test_damaged_caches.py

ranks: install  ## end runs of two processes at twenty random moments, in every way, until they have ended; about ten minutes
	$(BIN)/python tests/bench/ranks.py 20
	$(BIN)/python -m pytest -q -n0 -m "slow or not slow" tests/e2e/test_ranks.py tests/e2e/test_launchers.py

two-machines: install  ## train on two machines, network namespaces of this one, by the lines of the docs (Linux, root); four minutes
	$(BIN)/python tests/bench/two_machines.py

full-disk: install  ## fail each call of a run that writes, and fill its disk after every 4 KB (Linux, user namespaces; PAGES=10: after every 40); ten minutes
	VLMTUNE_WRITES=100000 $(BIN)/python -m pytest -q -n0 tests/e2e/test_every_write.py
	$(BIN)/python tests/bench/full_disk.py $(PAGES)

fuzz: install  ## read 20,000 damaged rows, configs, models, images and run folders (VLMTUNE_FUZZ=N); two minutes
	VLMTUNE_FUZZ=$${VLMTUNE_FUZZ:-20000} $(BIN)/python -m pytest -q -n 2 tests/fuzz

audit: install  ## look up known weaknesses of all that is installed; fails where no advisories can be reached
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)-audit/installed.txt
	@if $(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps -r $(VENV)-audit/installed.txt 2>$(VENV)-audit/said; then :; \
	elif grep -Eq "could not be audited|^requests\.exceptions\." $(VENV)-audit/said; then \
	echo "make audit: no advisories: PyPI's own service was not reached, so nothing is known of what is installed" >&2; exit 1; \
	else cat $(VENV)-audit/said >&2; exit 1; fi

architectures: install  ## try every architecture of transformers on a tiny model; 20 minutes, can be stopped and started
	$(BIN)/python docs/architectures.py

catalogue: install  ## estimate every model of the catalogue at every preset anew; half an hour, can be stopped and started
	$(BIN)/python docs/catalogue.py

guide: install  ## renew docs/guide.md: what LLaVA 1.5 7B takes on an 8 GB card; three minutes
	$(BIN)/vlmtune guide --model llava-hf/llava-1.5-7b-hf --gpu 8gb --md docs/guide.md

plans: install  ## plan the 6gb and 8gb presets for every model of the catalogue; an hour, can be stopped and started
	$(BIN)/python docs/plans.py

clean:  ## remove what the tasks made, but not the installation
	rm -rf runs demo-data .pytest_cache .ruff_cache .hypothesis
