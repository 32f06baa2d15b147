-- Takes one request out of a rate, and tells what is booked and what is known of a session.
-- KEYS: budget, rate, session, bad answer, reservations that end
-- ARGV: window length in ms (0: no budget), requests per second (0: no rate), burst, tokens needed, prefix of decisions
-- Returns: ms to wait (0: admitted), booked, window, session, bad answer
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length, per_second = tonumber(ARGV[1]), tonumber(ARGV[2])

local booked, window = 0, 0
if length > 0 then
  window = math.floor(now / length)
  local kept = redis.call('HMGET', KEYS[1], 'window', 'booked', 'length')
  if kept[1] and tonumber(kept[1]) == window and tonumber(kept[3]) == length then booked = tonumber(kept[2]) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[5], id)
    local held = redis.call('HMGET', ARGV[5] .. id, 'reserved', 'window')
    if held[1] then
      redis.call('HSET', ARGV[5] .. id, 'reserved', 0)
      if tonumber(held[2]) == window then
        booked = booked - tonumber(held[1])
        redis.call('HSET', KEYS[1], 'booked', string.format('%.0f', booked))
      end
    end
  end
end

local wait = 0
if per_second > 0 then
  local burst, needed = tonumber(ARGV[3]), tonumber(ARGV[4])
  local kept = redis.call('HMGET', KEYS[2], 'tokens', 'at')
  local tokens = burst
  if kept[1] then tokens = math.min(burst, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) / 1000 * per_second) end
  if tokens >= needed then
    tokens = tokens - 1
  else
    wait = math.max(1, math.ceil((needed - tokens) / per_second * 1000))
  end
  redis.call('HSET', KEYS[2], 'tokens', tostring(tokens), 'at', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[2], math.ceil(burst / per_second * 1000) + 60000)
end

return { wait, string.format('%.0f', booked), string.format('%.0f', window), redis.call('GET', KEYS[3]) or '', redis.call('GET', KEYS[4]) or '' }
