# One image for every role; the command says which: worker, dashboard, db upgrade, predict …
#
#   docker build -t forebay .
#   docker build -t forebay:gpu --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
#
# BASE           Debian or Ubuntu, with Python >= 3.11 or with one to be had from its packages
# EXTRAS         the optional parts to install; pyproject.toml lists them
# TORCH_INDEX_URL  a further package index for torch, such as PyTorch's own for CPU or for one CUDA version;
#                empty: the default index, whose Linux wheels carry their own CUDA and run on CPU too
ARG BASE=python:3.11-slim

FROM python:3.11-slim AS build
WORKDIR /build
# src/forebay links to the folders beside src, so all of them come.
COPY pyproject.toml README.md ./
COPY src src
COPY contract contract
COPY datasets datasets
COPY export export
COPY storage storage
COPY producer producer
COPY worker worker
COPY dashboard dashboard
COPY api api
COPY constraints-hashes.txt ./
RUN sed -nE '/^(pip|setuptools|packaging|wheel)==/,/[^\\]$/p' constraints-hashes.txt >/tmp/build.txt \
    && pip install --no-cache-dir --require-hashes -r /tmp/build.txt \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE} AS runtime
ARG EXTRAS=worker,dashboard,api,postgres,s3,batch,train,text
ARG TORCH_INDEX_URL=""

# The CUDA images come without Python.
RUN if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
        apt-get update \
        && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "BASE has no Python >= 3.11")' \
    && python3 -m venv /opt/forebay
COPY --from=build /tmp/build.txt /tmp/
ENV PATH=/opt/forebay/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/tmp/huggingface

RUN pip install --no-cache-dir --require-hashes -r /tmp/build.txt

# torch stands in its own layer: it is most of the image and changes least.
COPY constraints.txt constraints-hashes.txt /opt/forebay/
RUN case ",${EXTRAS}," in \
        *,worker,*|*,train,*|*,text,*|*,generation,*|*,transformers,*|*,convert,*|*,trees,*|*,explain,*|*,tune,*|*,bench,*|*,all,*) \
        pip install --no-cache-dir -c /opt/forebay/constraints.txt \
            ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch;; \
    esac
# All but torch and what came with it must be the very files that constraints-hashes.txt knows.
COPY --from=build /wheels /wheels
RUN wheel=$(echo /wheels/forebay-*.whl) \
    && echo "forebay${EXTRAS:+[$EXTRAS]} @ file://$wheel --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)" >/tmp/forebay.txt \
    && pip install --no-cache-dir -c /opt/forebay/constraints-hashes.txt -r /tmp/forebay.txt

# A named volume mounted at the blobs folder takes over its owner, so it must exist and be the user's.
RUN useradd --system --uid 10001 --home-dir /var/lib/forebay --shell /usr/sbin/nologin forebay \
    && mkdir -p /var/lib/forebay/blobs \
    && chown -R forebay:forebay /var/lib/forebay
WORKDIR /var/lib/forebay
USER forebay
ENTRYPOINT ["forebay"]
CMD ["--help"]
