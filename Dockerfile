# The GPU environment from the lock, run as a user: docker build -t reasoning-vectors .
#   docker run --gpus all -v "$PWD/results:/home/researcher/reasoning-vectors/results" reasoning-vectors experiment=paper
# torch's wheels bring CUDA; the host brings the driver (README: which). The base image has gcc and Python.h, which
# vLLM's compiler needs. docs/cluster.md: what programs of HumanEval need inside a container.
FROM python:3.11-bookworm
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 researcher
USER researcher
WORKDIR /home/researcher/reasoning-vectors
COPY --chown=researcher Makefile pyproject.toml README.md LICENSE ./
COPY --chown=researcher requirements requirements
COPY --chown=researcher conf conf
COPY --chown=researcher evals evals
COPY --chown=researcher models models
COPY --chown=researcher paper_tables paper_tables
COPY --chown=researcher pipeline pipeline
RUN make setup ACCELERATOR=gpu && mkdir -p results
ENTRYPOINT [".venv/bin/python", "-m", "pipeline"]
CMD ["doctor", "experiment=paper"]
