-- Reserves a decision's cost, if the budget has room for it, and keeps the decision and its session.
-- KEYS: budget, decision, session, reservations that end
-- ARGV: window length in ms (0: no budget), cost, hard limit (-1: none), ms until the reservation ends, 1: release it
--   then, decision as text, ms to keep it, session (empty: none), ms to keep that, decision id
-- Returns: 1 booked or 0 refused, booked, window
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length, cost, hard = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local booked, window = 0, 0
if length > 0 then
  window = math.floor(now / length)
  local kept = redis.call('HMGET', KEYS[1], 'window', 'booked', 'length')
  if kept[1] and tonumber(kept[1]) == window and tonumber(kept[3]) == length then booked = tonumber(kept[2]) end
  if hard >= 0 and booked + cost > hard then
    return { 0, string.format('%.0f', booked), string.format('%.0f', window) }
  end
  booked = booked + cost
  redis.call('HSET', KEYS[1], 'window', string.format('%.0f', window), 'booked', string.format('%.0f', booked), 'length', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], length * 2)
  if ARGV[5] == '1' then
    redis.call('ZADD', KEYS[4], string.format('%.0f', now + tonumber(ARGV[4])), ARGV[10])
    redis.call('PEXPIRE', KEYS[4], length * 2)
  end
end
redis.call('HSET', KEYS[2], 'pending', ARGV[6], 'reserved', ARGV[2], 'window', string.format('%.0f', window))
redis.call('PEXPIRE', KEYS[2], ARGV[7])
if ARGV[8] ~= '' then redis.call('SET', KEYS[3], ARGV[8], 'PX', ARGV[9]) end
return { 1, string.format('%.0f', booked), string.format('%.0f', window) }
