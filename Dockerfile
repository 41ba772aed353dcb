# One image for both commands: the sidecar with the Python of each runtime, and the reference platform.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY minter minter
COPY policy policy
COPY proxy proxy
COPY runner runner
COPY telemetry telemetry
RUN CGO_ENABLED=0 go build -trimpath -tags nomsgpack -ldflags "-s -w" -o /out/ ./cmd/kizen-sidecar ./cmd/kizen-platform

FROM python:3.12-slim-bookworm AS python312
ARG STEP_PACKAGES="requests numpy lxml msgpack bcrypt paramiko pyjwt pypdf fpdf2 pytz python-dateutil tzdata psycopg[binary] pymysql oracledb sqlalchemy"
RUN pip install --no-cache-dir $STEP_PACKAGES

FROM python:3.13-slim-bookworm
ARG STEP_PACKAGES="requests numpy lxml msgpack bcrypt paramiko pyjwt pypdf fpdf2 pytz python-dateutil tzdata psycopg[binary] pymysql oracledb sqlalchemy"
RUN pip install --no-cache-dir $STEP_PACKAGES
COPY --from=python312 /usr/local/bin/python3.12 /usr/local/bin/python3.12
COPY --from=python312 /usr/local/lib/libpython3.12.so.1.0 /usr/local/lib/libpython3.12.so.1.0
COPY --from=python312 /usr/local/lib/python3.12 /usr/local/lib/python3.12
COPY --from=build /out/ /usr/local/bin/
COPY examples /usr/share/kizen/examples
RUN ldconfig && useradd --system --uid 10001 --create-home kizen && install -d -o kizen -m 0700 /var/lib/kizen/keys
USER 10001
ENV KIZEN_ENV_FILE=/tmp/kizen.env
HEALTHCHECK --interval=10s --timeout=3s --start-period=2s CMD ["kizen-sidecar", "health", "--env-file", "/tmp/kizen.env"]
ENTRYPOINT ["kizen-sidecar"]
CMD ["proxy"]
