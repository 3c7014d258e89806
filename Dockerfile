# The two commands of the README; CUDA comes with torch's wheels.
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
WORKDIR /work
CMD ["pymic_vf", "--help"]
