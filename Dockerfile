# The sample app with memory backpressure, and the load test for it: see docker-compose.yml.

FROM python:3.13-slim AS build
# python3-dev: for base images whose Python is the distribution's own, which keeps its headers apart
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends libjemalloc2 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home app
ENV PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[demo]"
WORKDIR /srv
COPY examples examples
USER app
# By its bare name the dynamic linker finds it on every architecture.
ENV LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=thp:never
EXPOSE 8000
CMD ["uvicorn", "app:app", "--app-dir", "examples", "--host", "0.0.0.0", "--port", "8000", "--no-access-log"]
