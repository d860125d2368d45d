# One image for everything that runs: `tidemill stream`, `tidemill batch`, `tidemill apply`, and the producer of the flights example.
# docker-compose.yml says what each container does; docs/operations.md says the rest.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/tidemill
ENV PATH=/opt/tidemill/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Locked by version and hash, and without isolation: nothing is fetched that the lock files do not name. First, because it changes least.
COPY requirements/build.txt requirements/run.txt requirements/
RUN pip install --require-hashes -r requirements/build.txt \
    && pip install --no-build-isolation --use-pep517 --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY tidemill tidemill
COPY streaming streaming
COPY batch batch
COPY backfill backfill
COPY serving serving
COPY examples examples
RUN pip install --no-build-isolation --no-deps . \
    && pip uninstall --yes hatchling setuptools wheel pip

FROM python:${PYTHON}-slim-bookworm
RUN useradd --system --uid 10001 --create-home --home-dir /home/tidemill tidemill \
    && mkdir -p /var/lib/tidemill/offline /project \
    && chown -R tidemill:tidemill /var/lib/tidemill /project
COPY --from=build /opt/tidemill /opt/tidemill
COPY --chown=10001:10001 examples/flights /project
COPY docker/healthy.py /usr/local/lib/tidemill/healthy.py
ENV PATH=/opt/tidemill/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
# So that containers need not compile before their first request (those on another kind of processor do).
RUN python -m tidemill.kernel.warm
# Another project is mounted here, or copied over this one. Below its .tidemill, workers say how they are: it must be writable.
WORKDIR /project/servers
VOLUME /var/lib/tidemill/offline
# A worker that hangs is as bad as one that is gone; docker-compose.yml has another check for what is no stream.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "/usr/local/lib/tidemill/healthy.py", "stream", "9464"]
CMD ["tidemill", "stream", "--metrics-port", "9464", "--log-format", "json"]
