-- What wrk sends: GETs, or POSTs of so many bytes as the first argument says; and one line of what came of them.
function init(arguments)
   local size = tonumber(arguments[1])
   if size > 0 then
      wrk.method = "POST"
      wrk.body = string.rep("x", size)
      wrk.headers["content-type"] = "application/octet-stream"
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format("{\"answers\": %d, \"refusals\": %d, \"broken\": %d}\n",
      summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
